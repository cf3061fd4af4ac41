"""The views: header and rows agree, states and costs are named, the map fits."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from kvloom.cli import context_view
from kvloom.cli.context_stats import context_stats
from kvloom.cli.standing import AutoCompress, Standing, WindowOrigin
from kvloom.cli.stats_view import stats_view
from kvloom.memory.reading import MemoryKind, MemoryReading
from kvloom.session.values import ContextUsage, LoomStatus, Segment, TierStatus
from kvloom.types import ChunkId, Fidelity, TierName

A, B = "aa" * 32, "bb" * 32


def segment(kind: str, name: str, ref: str, start: int, count: int) -> Segment:
    return Segment(kind, name, ref, count, start, start + count, True, False, False, TierName.DEVICE, count * 100, 0.0)


HEAD = segment("head", "", "", 0, 30)
CHUNK_A = segment("chunk", "a.py", A, 30, 512)
CHUNK_B = replace(segment("chunk", "b.py", B, 542, 200), is_active=False, tier=TierName.DISK, restore_s=0.034)
TURN = replace(segment("turn", "turn 1", "t1", 742, 58), traces=(ChunkId(B),))


def usage_of(*segments: Segment) -> ContextUsage:
    used = sum(s.num_tokens for s in segments if s.is_active)
    return ContextUsage(used, 8192, 8192 - used, 512, 200, Fidelity.SPLICE, "fifo", segments)


STATUS = LoomStatus(
    "qwen", "/m/q.gguf", "f" * 64, "LlamaCppEngine", "f16", 8192, 9728, 600, 32768, Fidelity.SPLICE, True, True, "",
    (TierStatus(TierName.DEVICE, 3, 60_000, None), TierStatus(TierName.DISK, 9, 5 * 1024**2, 1024**3)),
    {"checksum": 2}, "/home",
)  # fmt: skip

GPU = MemoryReading("gpu 0", MemoryKind.VRAM, 8 * 1024**3, 6 * 1024**3, 2 * 1024**3, "test")

STANDING = Standing((GPU,), "soft", 12_000, ("memory is at 81%: evicted",), 3, AutoCompress.ARMED, 6144, 0.8, "hybrid")


def text_of(view: RenderableType, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, highlight=False).print(view)
    return stream.getvalue()


def test_header_and_rows_agree() -> None:
    usage = usage_of(HEAD, CHUNK_A, CHUNK_B, TURN)
    rows = context_view.context_rows(usage.segments)
    assert sum(row.num_tokens for row in rows if row.is_active) == usage.used == 600
    shown = text_of(context_view.context_view(usage, STATUS, STANDING, "work"))
    assert "600 / 8,192 tokens (7%)" in shown
    assert "free 7,592, of it reserve 512" in shown
    assert "holes 200" in shown
    assert "600 / 9,728 used" in shown


def test_a_row_shows_id_positions_state_and_what_restoring_costs() -> None:
    lines = text_of(
        context_view.context_view(usage_of(HEAD, CHUNK_A, CHUNK_B, TURN), STATUS, STANDING, "work")
    ).splitlines()
    on = next(line for line in lines if "a.py" in line)
    assert {"aaaaaaaaaaaa", "512", "30–541", "device", "on"} <= set(on.split())
    off = next(line for line in lines if "b.py" in line and "bbbbbbbbbbbb" in line)
    assert "disk" in off
    assert "0.034 s" in off
    assert off.rstrip().endswith("off")


def test_the_status_box_tells_memory_guard_snapshots_policy_and_compression() -> None:
    shown = text_of(context_view.context_view(usage_of(HEAD), STATUS, STANDING, "work"))
    told = {
        "VRAM": "6.0 GiB / 8.0 GiB (75%)",
        "KV": "f16 · device 58.6 KiB · disk 5.0 MiB",
        "Guard": "soft · room for 12,000 tokens more",
        "Snapshots": "3 to go back to",
        "Policy": "fifo",
        "Compress": "by itself at 80% (6,144 tokens), hybrid",
    }
    for title, value in told.items():
        assert any(line.strip("│ ").startswith(title) and value in line for line in shown.splitlines()), title
    assert "! memory is at 81%: evicted" in shown


@pytest.mark.parametrize("state", [state for state in AutoCompress if state is not AutoCompress.ARMED])
def test_a_compression_that_will_not_begin_says_why(state: AutoCompress) -> None:
    assert context_view.compress_text(replace(STANDING, auto_compress=state)) == state.value


def test_the_box_tells_where_the_window_comes_from_and_what_speaks_against_it() -> None:
    lines = text_of(context_view.context_view(usage_of(HEAD), STATUS, STANDING, "work")).splitlines()
    assert any("Window" in line and "8,192 tokens, the default; --context N" in line for line in lines)
    last = replace(STANDING, window_origin=WindowOrigin.LAST, window_warning="trained for 4,096 tokens")
    shown = text_of(context_view.context_view(usage_of(HEAD), STATUS, last, "work"))
    assert "8,192 tokens, the one that the session was open with last" in shown
    assert "! trained for 4,096 tokens" in shown
    assert set(context_view.ORIGIN_TEXTS) == set(WindowOrigin)


def test_two_gpus_are_told_apart_and_a_memory_that_nobody_could_read_is_left_out() -> None:
    two = replace(STANDING, memory=(GPU, replace(GPU, device="gpu 1")))
    assert "gpu 1" in text_of(context_view.context_view(usage_of(HEAD), STATUS, two, "work"))
    none = text_of(context_view.context_view(usage_of(HEAD), STATUS, replace(STANDING, memory=()), "work"))
    assert "VRAM" not in none


def test_free_and_reserve_are_rows_of_their_own() -> None:
    lines = text_of(context_view.context_view(usage_of(HEAD, CHUNK_A), STATUS, STANDING, "work")).splitlines()
    assert any("free" in line and "7,138" in line for line in lines)
    assert any("reserve for the reply" in line and "512" in line for line in lines)


def test_a_trace_is_named_with_its_chunk_and_the_way_out() -> None:
    notes = context_view.trace_notes(usage_of(HEAD, CHUNK_A, CHUNK_B, TURN))
    assert notes == ["1 turn was made while b.py was on and still carries its trace; /recompute clears it"]
    assert context_view.trace_notes(usage_of(HEAD, CHUNK_A)) == []


def test_a_stale_chunk_is_named_with_the_way_out() -> None:
    usage = usage_of(HEAD, replace(CHUNK_A, is_stale=True))
    assert any("a.py; /reload" in line for line in context_view.attention(usage))
    assert "stale" in text_of(context_view.context_view(usage, STATUS, STANDING, "work"))


def test_parts_of_a_split_chunk_are_one_row_as_cold_as_the_coldest() -> None:
    second = replace(CHUNK_A, start=542, stop=600, num_tokens=58, tier=TierName.RAM, restore_s=None)
    [row] = context_view.context_rows([CHUNK_A, second])
    assert (row.num_parts, row.num_tokens, row.start, row.stop) == (2, 570, 30, 600)
    assert row.tier is TierName.RAM
    assert row.restore_s is None


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_the_map_is_always_as_wide_as_it_should_be_and_hides_no_part(parts: list[int]) -> None:
    cells = context_view._apportion(parts, context_view.MAP_CELLS)
    if not any(parts):
        assert cells == [0] * len(parts)
        return
    assert sum(cells) == context_view.MAP_CELLS
    assert all((count > 0) == (part > 0) for count, part in zip(cells, parts, strict=True))


def test_more_parts_than_cells_still_fit() -> None:
    assert sum(context_view._apportion([1] * 200, context_view.MAP_CELLS)) == context_view.MAP_CELLS


def test_stats_name_budgets_and_refused_entries() -> None:
    shown = text_of(stats_view(usage_of(HEAD), STATUS, context_stats(usage_of(HEAD), [], [])))
    assert "9 entries, 5.0 MiB of 1.0 GiB" in shown
    assert "checksum 2" in shown
    assert any(line.split() == ["Trained", "for", "32,768", "tokens"] for line in shown.splitlines())


def test_a_name_cannot_steer_the_terminal() -> None:
    shown = text_of(context_view.context_view(usage_of(replace(CHUNK_A, name="\x1b[2Jx")), STATUS, STANDING, "work"))
    assert "\x1b" not in shown
