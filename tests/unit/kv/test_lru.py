"""The books always add up, and what they choose to evict is enough and no more than needed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.kv.lru import LruBook
from kvloom.types import EntryId

ids = st.sampled_from([EntryId(f"{i:064x}") for i in range(8)])
steps = st.lists(st.tuples(st.sampled_from(["record", "touch", "forget", "pin", "unpin"]), ids, st.integers(0, 50)))


@given(steps=steps, newcomer=ids, size=st.integers(0, 120), budget=st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_books_add_up_and_victims_make_just_enough_room(
    steps: list[tuple[str, EntryId, int]], newcomer: EntryId, size: int, budget: int
) -> None:
    book = LruBook()
    model: dict[EntryId, int] = {}
    pins: dict[EntryId, int] = {}
    for action, one, number in steps:
        if action == "record":
            book.record(one, number)
            model.pop(one, None)
            model[one] = number
        elif action == "touch":
            book.touch(one)
            if one in model:
                model[one] = model.pop(one)
        elif action == "forget":
            assert book.forget(one) == model.pop(one, 0)
        elif action == "pin":
            book.pin(one)
            pins[one] = pins.get(one, 0) + 1
        elif pins.get(one):
            book.unpin(one)
            pins[one] -= 1
    assert book.ids() == list(model)
    assert book.total_bytes == sum(model.values())
    others = sum(n for one, n in model.items() if one != newcomer)
    evictable = [one for one in model if one != newcomer and not pins.get(one)]
    victims = book.victims(newcomer, size, budget)
    if others - sum(model[one] for one in evictable) + size > budget:
        assert victims is None
        return
    assert victims == evictable[: len(victims or [])]
    left = others - sum(model[one] for one in victims or [])
    assert left + size <= budget
    if victims:
        assert left + model[victims[-1]] + size > budget
