"""`python -m kvloom.server.fake HOME`: the server over the deterministic engine, to measure what HTTP itself costs.

On a free port of loopback, which its first line tells as JSON. Ends on SIGTERM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kvloom.config import load_settings
from kvloom.server.app import create_app
from kvloom.server.local import LocalBackend
from kvloom.server.logs import set_up_logging
from kvloom.server.run import listen, serve
from kvloom.session.fake_rooms import FAKE_MODEL, open_fake


def main(home: Path) -> None:
    settings = load_settings({}, home=home)
    app = create_app(LocalBackend(lambda: open_fake(settings, home), FAKE_MODEL), settings.server)
    set_up_logging(settings.server.log_format)
    with listen("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"

        def announce() -> None:
            print(json.dumps({"url": url, "model": FAKE_MODEL}), flush=True)  # noqa: T201 - whoever asked reads it

        serve(app, settings.server, bound, announce)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
