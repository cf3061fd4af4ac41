"""The demo as a user runs it: every step is there, its numbers add up, its home is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

WAIT_S = 280


def test_the_demo_shows_that_nothing_is_computed_twice(smollm2_path: Path, tmp_path: Path) -> None:
    import asyncio

    library = Path(asyncio.__file__).parent
    files = [word for name in ("mixins.py", "threads.py", "log.py") for word in ("--file", str(library / name))]
    done = subprocess.run(
        [sys.executable, "-m", "kvloom.cli.main", "demo", "--model", str(smollm2_path), *files, "--json"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "KVLOOM_HOME": str(tmp_path / "untouched")},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    load, *rows = report["rows"]
    assert load["computed_tokens"] == load["prompt_tokens"] > report["num_file_tokens"] * 0.9
    assert [row["step"] for row in rows] == ["ask", "threads.py off", "on again, reordered", "after a restart"]
    for row in rows:
        assert row["prompt_tokens"] == row["reused_tokens"] + row["loaded_tokens"] + row["computed_tokens"]
        assert row["computed_tokens"] < 40, "only the question is computed"
        assert row["ttft_s"] > 0
    for row in rows[:3]:
        assert 0 <= row["kl"] < 5
        assert 0 <= row["top1"] <= 1
        assert row["prefill_s"] > 0
    assert rows[0]["prefill_computed_tokens"] >= report["num_file_tokens"]
    assert rows[2]["rotated_tokens"] > 0
    assert rows[3]["reused_tokens"] == 0
    assert report["restart_kl"] < 1e-2
    assert list(tmp_path.iterdir()) == [], "it left nothing behind"
