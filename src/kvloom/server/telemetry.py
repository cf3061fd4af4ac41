"""OpenTelemetry's GenAI metrics of the server, under the names that its semantic conventions give them.

Without opentelemetry's API nothing happens, with the API but no SDK set up next to nothing: whoever runs the server
under `opentelemetry-instrument`, or sets a meter provider, gets them sent.
https://github.com/open-telemetry/semantic-conventions/blob/main/docs/gen-ai/gen-ai-metrics.md
"""

from __future__ import annotations

from typing import Any

from kvloom.types import Usage

PROVIDER = "kvloom"

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
"""Seconds; the conventions' own, and two more: a cold prefill on a CPU takes long."""
TOKEN_S_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
USAGE_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


class Telemetry:
    """The instruments. `meter`: for tests; else the process's own."""

    def __init__(self, meter: Any = None) -> None:
        meter = meter or _meter()
        if meter is None:
            self._ttft = self._per_token = self._duration = self._usage = None
            return
        self._ttft = meter.create_histogram(
            "gen_ai.server.time_to_first_token", unit="s", description="Time to the first token of a reply",
            explicit_bucket_boundaries_advisory=TTFT_BUCKETS,
        )  # fmt: skip
        self._per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token", unit="s", description="Time per token after the first",
            explicit_bucket_boundaries_advisory=TOKEN_S_BUCKETS,
        )  # fmt: skip
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration", unit="s", description="Time of a reply, from its work's start to its end",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )  # fmt: skip
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", description="Tokens of prompts and replies",
            explicit_bucket_boundaries_advisory=USAGE_BUCKETS,
        )  # fmt: skip

    def replied(self, model: str, operation: str, usage: Usage, per_token_s: float | None) -> None:
        """One reply has ended."""
        if self._ttft is None or self._per_token is None or self._duration is None or self._usage is None:
            return
        facts = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }
        self._ttft.record(usage.ttft_s, facts)
        if per_token_s is not None:
            self._per_token.record(per_token_s, facts)
        self._duration.record(usage.total_s, facts)
        self._usage.record(usage.prompt_tokens, {**facts, "gen_ai.token.type": "input"})
        self._usage.record(usage.completion_tokens, {**facts, "gen_ai.token.type": "output"})


def _meter() -> Any:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    return metrics.get_meter("kvloom.server")
