"""Events on their way to a client: comments while nothing comes, the end of patience, texts in templates."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from kvloom.server.sse import EventStream, EventTemplate, event, with_pings

T = TypeVar("T")


class InstantLoop(asyncio.SelectorEventLoop):
    """Time passes only where it would wait, and at once."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        self._passed_s, select = 0.0, selector.select

        def jump(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self._passed_s += timeout or 0.0
            return select(0)

        selector.select = jump  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self._passed_s


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(work)


async def _events(gaps_s: list[float]) -> AsyncIterator[bytes]:
    for number, gap in enumerate(gaps_s):
        await asyncio.sleep(gap)
        yield b"%d" % number


def test_a_comment_goes_out_while_nothing_comes_and_none_between_events_that_come() -> None:
    async def read(gaps_s: list[float]) -> list[bytes]:
        return [item async for item in with_pings(_events(gaps_s), every_s=0.2)]

    assert run(read([0.0, 0.15, 0.15])) == [b"0", b"1", b"2"]
    assert run(read([0.0, 0.7])) == [b"0", *[b": ping\n\n"] * 3, b"1"]


def test_a_client_that_reads_nothing_is_given_up_and_one_that_waits_for_tokens_is_not() -> None:
    async def send_to(stuck_after: int, gaps_s: list[float]) -> tuple[int, bool]:
        sent, ended = 0, []

        async def send(message: Message) -> None:
            nonlocal sent
            if sent == stuck_after:
                await asyncio.Event().wait()
            sent += 1

        stream = EventStream(_events(gaps_s), {}, stalled_s=0.15, ended=lambda: ended.append(True))
        await asyncio.wait_for(stream.stream_response(send), 5)
        return sent, bool(ended)

    assert run(send_to(2, [0.0] * 5))[0] == 2
    assert run(send_to(99, [0.0, 0.5, 0.0]))[0] == 5  # the head, three events, the end


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_in_a_template_is_what_the_event_would_be(text: str) -> None:
    def written(text: str) -> bytes:
        return event(json.dumps({"a": 1, "text": text, "b": None}, ensure_ascii=False))

    found = EventTemplate(written).of(text)
    assert json.loads(found.removeprefix(b"data: ")) == json.loads(written(text).removeprefix(b"data: "))
    assert found.endswith(b"\n\n")
    assert found.count(b"\n") == 2
