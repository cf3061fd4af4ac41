"""The preamble: a fixed text behind which every chunk is computed alone. Knows no model.

A chunk that comes right behind a sink token has rows that differ from those of a full prefill in a way that hardly
depends on the chunk; behind the middle of some text, whatever the text, they do not. Measured in docs/blend.md: KL 0.62
of the sink's alone. The preamble's own rows are never placed: it costs attention once, when a chunk is computed.
"""

from __future__ import annotations

from collections.abc import Callable

PREAMBLE = '''\
# file: docs/notes.md
A service keeps a list of jobs. Every job has a name, a state and a number of attempts. A worker takes the oldest job
that is ready, runs it, and writes down what came of it. When a job fails, it is tried again later, at most five times.

# file: app/worker.py
"""Runs the jobs of a queue, one after the other."""
import logging
import time
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass
class Job:
    name: str
    attempts: int = 0
    ready_at: float = 0.0


class Worker:
    def __init__(self, queue, limit=5):
        self.queue = queue
        self.limit = limit

    def run(self, job):
        """Run one job. Returns True if it is done."""
        try:
            self.queue.handlers[job.name](job)
        except Exception as error:
            log.warning("job %s failed: %s", job.name, error)
            job.attempts += 1
            job.ready_at = time.time() + 2 ** job.attempts
            return job.attempts >= self.limit
        return True

'''
"""Some prose and some code, as in files. Changing a byte changes what entries mean: bump `types.ENTRY_KEY_VERSION`."""

MAX_TOKENS = 256
"""About the length that was measured; a vocabulary of bytes would make a thousand of it."""
MIN_CONTEXT = 2048
"""Models trained for less keep to the sink: they need the positions for chunks."""


def alone_prefix(sink_token: int, context: int, tokenize: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
    """The token ids that a chunk is computed behind when it is computed alone; for a model trained for `context`."""
    return (sink_token, *tokenize(PREAMBLE)[:MAX_TOKENS]) if context >= MIN_CONTEXT else (sink_token,)
