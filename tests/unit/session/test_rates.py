"""What a token costs on this machine outlives the process that measured it."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from kvloom.chunk.database import DATABASE_NAME, Database
from kvloom.context.weave import Weave
from kvloom.engine.fake import FakeEngine
from kvloom.session.rates import MOVED_SHARE, KeptRates
from kvloom.types import KVType, TierName
from tests.unit.session.fakes import fake_loom

COMPUTED = Weave(reused_tokens=0, loaded_tokens=0, computed_tokens=100, rotated_tokens=0, dropped_tokens=0, seconds=2.0)


def stored(home: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        found = connection.execute("SELECT place_s, compute_s FROM rates").fetchall()
    connection.close()
    return found


def test_a_second_loom_over_the_home_knows_what_a_restore_costs(tmp_path: Path) -> None:
    with fake_loom(tmp_path) as loom:
        chat = loom.session(name="work")
        assert chat.usage().segments[0].restore_s is None
        chat.generate("a question of some words", max_tokens=4, temperature=0.0)
        taken = chat.snapshot("here")
        compute_s = loom.rates.compute_s
        assert compute_s
    with fake_loom(tmp_path) as again:
        assert again.rates.compute_s == compute_s
        assert again.rates.restore_s(TierName.NONE, 10) == pytest.approx(10 * compute_s)
        chat = again.session(name="work")
        chat.warm()
        assert again.rates.place_s, "what was stored is placed, and that is measured, too"
    with fake_loom(tmp_path) as third:
        assert third.session(name="work").snapshots()[0].id == taken.id
        assert third.session(name="work").snapshots()[0].restore_s, "the picker shows a cost at once"


def test_a_rate_is_written_where_it_has_moved_and_at_the_end(tmp_path: Path) -> None:
    database, engine = Database(tmp_path), FakeEngine()
    rates = KeptRates(database, engine)
    rates.save_if_moved()
    assert stored(tmp_path) == [], "nothing was measured yet"
    rates.note(COMPUTED)
    assert stored(tmp_path) == [], "nothing is written while somebody waits"
    rates.save_if_moved()
    assert stored(tmp_path) == [(None, 0.02)]
    rates.note(replace(COMPUTED, seconds=2.0 * (1 + MOVED_SHARE)))
    rates.save_if_moved()
    assert stored(tmp_path) == [(None, 0.02)], "smoothed it has hardly moved"
    rates.save()
    assert stored(tmp_path)[0][1] == pytest.approx(0.0212)
    database.close()


def test_another_model_or_kv_type_has_rates_of_its_own(tmp_path: Path) -> None:
    database = Database(tmp_path)
    rates = KeptRates(database, FakeEngine(seed=1))
    rates.note(COMPUTED)
    rates.save()
    assert KeptRates(database, FakeEngine(seed=1)).compute_s == 0.02
    assert KeptRates(database, FakeEngine(seed=2)).compute_s is None
    other = FakeEngine(seed=1)
    other.layout = replace(other.layout, k_type=KVType.Q8_0)
    assert KeptRates(database, other).compute_s is None
    database.close()


@pytest.mark.parametrize("value", [-1.0, 0.0, "fast", float("inf")])
def test_a_stored_rate_that_cannot_be_is_measured_again(tmp_path: Path, value: object) -> None:
    database, engine = Database(tmp_path), FakeEngine()
    rates = KeptRates(database, engine)
    rates.note(COMPUTED)
    rates.save()
    database.execute("UPDATE rates SET compute_s = ?", (value,))  # type: ignore[arg-type]
    assert KeptRates(database, engine).compute_s is None
    database.close()


def test_a_home_that_takes_nothing_costs_no_reply(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(tmp_path)
    rates = KeptRates(database, FakeEngine())
    database.close()
    rates.note(COMPUTED)
    rates.save_if_moved()
    rates.save()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["the measured rates cannot be kept"]
