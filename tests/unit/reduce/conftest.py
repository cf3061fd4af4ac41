"""No deadline for one example: the machines that run these tests are shared, and examples count much or little."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
