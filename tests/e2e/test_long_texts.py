"""A text longer than the window on a real model: windows and a summary, resumed and edited."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvloom
from kvloom.errors import CancelledError
from kvloom.session.loom import Loom
from kvloom.session.values import Progress

pytestmark = pytest.mark.e2e

HARBOUR = (
    "The harbour of Anstruther has two piers. The east pier was built in 1866 by David and Thomas Stevenson, the west "
    "pier in 1753 by the town. Herring boats landed their fish there until 1947, when the shoals did not come back.\n\n"
)
ORCHARD = (
    "The orchard at Newburgh was planted by monks. They grew plums and pears, and sold them on the first Saturday of "
    "September. In 1890 there were 25 growers in the town; each had a stall of their own along the High Street.\n\n"
)
RAILWAY = (
    "The railway came to Crail in 1886. Two trains a day went to Leuchars, and in summer a third one. The line was "
    "closed in 1965, and its bridges were sold for 40 pounds each. A path for walkers follows it today.\n\n"
)
LETTER = (
    "Margaret wrote to her brother in Boston that the winter had been long. The well froze on 12 January, and the "
    "school stayed shut for three weeks. She asked him for seeds, for a map of the city, and for news of his son.\n\n"
)
TEXT = HARBOUR + ORCHARD + RAILWAY + LETTER


@pytest.fixture(scope="module")
def loom(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loom]:
    with kvloom.open(smollm2_path, context=512, home=tmp_path_factory.mktemp("long-home")) as opened:
        yield opened


def test_windows_cover_every_token_and_a_stopped_pass_goes_on(loom: Loom) -> None:
    laid = kvloom.windows(TEXT, 120, 0.5, loom.count)
    assert "".join(TEXT[one.start : two.start] for one, two in itertools.pairwise(laid)) == TEXT[: laid[-1].start]
    assert laid[-1].stop == len(TEXT)
    assert all(loom.count(one.text) <= 120 for one in laid)
    num_done = 0

    def count_done(progress: Progress) -> None:
        nonlocal num_done
        if progress.task == "asking":
            num_done = progress.done

    question = "Which town is this about?"
    with pytest.raises(CancelledError):
        kvloom.ask_windows(
            TEXT, question, loom, size=120, overlap=0.5, max_tokens=24, progress=count_done,
            is_cancelled=lambda: num_done >= 2,
        )  # fmt: skip
    found = kvloom.ask_windows(TEXT, question, loom, size=120, overlap=0.5, max_tokens=24, combine="answer")
    assert found.num_found == 2
    assert len(found.replies) == len(laid)
    assert any(town in one.text for one in found.replies for town in ("Anstruther", "Newburgh", "Crail"))
    assert found.text


def test_an_edited_document_computes_its_branch_and_the_summary_only(loom: Loom) -> None:
    texts = {"coast.md": HARBOUR + RAILWAY, "land.md": ORCHARD + LETTER}
    first = kvloom.summarize(texts, loom, words=40)
    assert 0 < first.num_words <= 40
    assert [node.name for node in first.root.children] == ["coast.md", "land.md"]
    assert kvloom.summarize(texts, loom, words=40).num_asked == 0
    edited = kvloom.summarize(
        {**texts, "land.md": ORCHARD + LETTER.replace("three weeks", "two weeks")}, loom, words=40
    )
    assert [node.is_new for node in edited.root.children] == [False, True]
    assert edited.num_found > 0
    assert loom.sessions() == []
