"""Compiles a grammar that nobody has checked, in a process that may die of it. Run as a script by `grammar`.

It imports nothing of kvloom, so that it starts fast. The grammar comes on stdin, what is wrong with it goes to stdout.
"""

from __future__ import annotations

import contextlib
import sys

REFUSED = 3
"""Exit code: the grammar was read and is wrong; stdout says why."""


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Let the kernel end this process beyond these. Where there are no such limits the parent's clock must do."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(memory_bytes: int, cpu_s: int) -> int:
    import llguidance

    limit(memory_bytes, cpu_s)
    grammar = sys.stdin.buffer.read().decode("utf-8")
    wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        sys.stdout.buffer.write(" ".join(messages).encode("utf-8", "replace"))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
