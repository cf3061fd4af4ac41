"""Requests drawn from the server's own schema: whatever they are, the answer is no server error and says why not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok


class Drawn:
    """What was asked of one server, and what it said."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self.labels: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.codes: set[str] = set()

    def ask(
        self,
        max_examples: int,
        is_meant: Callable[[str], bool],
        prepare: Callable[[Any], None],
    ) -> None:
        """Good and bad requests of each operation whose path `is_meant`, each changed by `prepare` first."""
        drawing = settings(
            max_examples=max_examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        def check(case: Any) -> None:
            prepare(case)
            self._check(case)

        for result in schemathesis.openapi.from_url(f"{self._url}/openapi.json").get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            if not is_meant(operation.path):
                continue
            modes = [GenerationMode.POSITIVE]
            if operation.body or operation.query or operation.path_parameters:
                modes.append(GenerationMode.NEGATIVE)  # nothing can be wrong with a GET without parameters
            for mode in modes:
                drawing(given(case=operation.as_strategy(generation_mode=mode))(check))()

    def _check(self, case: Any) -> None:
        answer = case.call(base_url=self._url, timeout=self._timeout_s)
        self.labels[case.operation.label] += 1
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            error = json.loads(answer.content)["error"]
            assert error["message"] and error["type"]
            self.codes.add(error["code"])
