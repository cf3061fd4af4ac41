"""The sums behind `stats`: they add up, and say nothing where nothing is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvloom.cli.context_stats import TREND_TURNS, context_stats
from kvloom.cli.stats_view import turns_text
from kvloom.session.values import ContextUsage, LedgerLine, Segment, Turn
from kvloom.types import Fidelity, TierName


def turn(number: int, num_tokens: int, replaces: tuple[str, ...] = ()) -> Turn:
    return Turn(f"t{number}", number, "q", "a", "", "stop", num_tokens, replaces=replaces)


def segment(tier: TierName, num_tokens: int, *, is_active: bool = True) -> Segment:
    return Segment("turn", "turn", "t", num_tokens, 0, num_tokens, is_active, False, False, tier, num_tokens * 10, 0.0)


def line(num_tokens: int) -> LedgerLine:
    return LedgerLine("turn", "t", "", "q", num_tokens, "clear", False, False, TierName.RAM, None)


def usage_of(*segments: Segment, capacity: int = 1000, reserve: int = 100) -> ContextUsage:
    used = sum(one.num_tokens for one in segments if one.is_active)
    return ContextUsage(used, capacity, capacity - used, reserve, 0, Fidelity.SPLICE, "fifo", segments)


def test_the_trend_and_the_turns_that_still_fit() -> None:
    stats = context_stats(usage_of(segment(TierName.DEVICE, 300)), [turn(i, 90 + 10 * i) for i in range(4)], [])
    assert (stats.tokens_per_turn, stats.trend_tokens, stats.turns_left) == (105.0, 10.0, 5)
    assert turns_text(stats) == "4, 105 tokens each of late, trend +10.0 a turn, about 5 more until the window is full"


def test_a_summary_is_no_turn_to_learn_from_and_old_turns_are_forgotten() -> None:
    turns = [turn(0, 900, ("a", "b")), turn(1, 900), *(turn(i, 50) for i in range(2, 2 + TREND_TURNS))]
    assert context_stats(usage_of(), turns, []).tokens_per_turn == 50


def test_an_empty_context_knows_no_trend() -> None:
    stats = context_stats(usage_of(), [], [])
    assert (stats.tokens_per_turn, stats.trend_tokens, stats.turns_left) == (None, None, None)
    assert stats.compression_ratio == 1.0
    assert turns_text(stats) == "0"


def test_what_was_given_is_in_the_prompt_or_in_the_ledger() -> None:
    stats = context_stats(usage_of(segment(TierName.DEVICE, 250)), [turn(1, 250)], [line(500), line(250)])
    assert (stats.num_ledger_lines, stats.num_ledger_tokens, stats.compression_ratio) == (2, 750, 0.25)


@given(st.lists(st.tuples(st.sampled_from(list(TierName)), st.integers(0, 5000), st.booleans())))
def test_the_tiers_add_up_to_what_is_used(parts: list[tuple[TierName, int, bool]]) -> None:
    usage = usage_of(*(segment(tier, count, is_active=on) for tier, count, on in parts), capacity=10**6)
    stats = context_stats(usage, [], [])
    assert sum(share.num_tokens for share in stats.tiers) == usage.used
    assert len({share.tier for share in stats.tiers}) == len(stats.tiers)
