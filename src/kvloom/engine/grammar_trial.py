"""Compiles a grammar that nobody has checked, in a process that may die of it. Run as a script by `grammar`.

It imports nothing of kvloom, so that it starts fast. The grammar comes on stdin, what is wrong with it goes to stdout.
"""

from __future__ import annotations

import contextlib
import sys

REFUSED = 3
"""Exit code: the grammar was read and is wrong; stdout says why."""
LIMITS: dict[str, int | bool] = {
    "max_items_in_row": 600,  # of its parser: 150 optional properties, 400 tools; a step of the worst stays below 0.1 s
    "step_max_items": 20_000,
    "max_lexer_states": 32_000,  # 1 – 2 kB each: 64 MB for the worst reply, not llguidance's 500 MB
    "max_grammar_size": 200_000,
    "verbose_errors": False,  # they would tell of other parts of the grammar and take long to write
}


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
        return refuse(" ".join(messages))
    # What compiles may still be impossible to begin: followed over bytes, as far as there is no choice.
    limits = llguidance.LLParserLimits(**LIMITS)  # type: ignore[arg-type]  # a mapping of two value types
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0, limits=limits)
    matcher.consume_tokens(matcher.compute_ff_tokens())
    matcher.compute_logit_bias()
    return refuse(matcher.get_error()) if matcher.is_error() else 0


def refuse(reason: str) -> int:
    sys.stdout.buffer.write(reason.encode("utf-8", "replace"))
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
