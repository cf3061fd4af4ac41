"""What the other process of the restart tests does: `python restart_child.py JOB MODEL HOME [SESSION]`.

It prints one line for everything that it has been promised, so that a kill can be aimed between two of them.
"""

from __future__ import annotations

import hashlib
import sys

import kvloom
from kvloom.session.loom import Loom
from kvloom.session.session import Session

SYSTEM = "You answer from the files, in a few words."
NOTES = "The harbour of Anstruther has two piers. The east pier was built in 1866.\n"
CODE = "def area(width, height):\n    return width * height\n"
QUESTION = "When was the east pier built?"


def say(*words: object) -> None:
    print(*words, flush=True)


def digest(chat: Session) -> str:
    return hashlib.sha256(chat.next_logits(QUESTION).tobytes()).hexdigest()


def begin(loom: Loom, mode: str) -> Session:
    chat = loom.session(system=SYSTEM, fidelity=mode)
    chat.activate(loom.load_text(NOTES, name="notes.txt").id, loom.load_text(CODE, name="area.py").id)
    return chat


def make(loom: Loom, mode: str) -> None:
    """A session with a turn; its logits are asked for where the device was emptied, so that both sides restore."""
    chat = begin(loom, mode)
    reply = chat.generate("How many piers are there?", max_tokens=6, temperature=0.0)
    say("session", chat.id)
    say("reply", repr(reply.text))
    chat.close()
    say("logits", digest(loom.session(id=chat.id)))


def resume(loom: Loom, session: str) -> None:
    chat = loom.session(id=session)
    say("reply", repr(chat.history()[0].answer))
    warmed = chat.warm()
    say("computed", warmed.computed_tokens, "loaded", warmed.loaded_tokens)
    say("logits", digest(chat))


def talk_for_ever(loom: Loom, _: str) -> None:
    chat = begin(loom, "splice")
    say("session", chat.id)
    for number in range(10_000):
        for _delta in chat.stream(f"Question {number}?", max_tokens=3, temperature=0.0):
            say("delta")
        say("turn", number, chat.history()[-1].id)


def store_for_ever(loom: Loom, _: str) -> None:
    chat = loom.session(system=SYSTEM, fidelity="splice")
    say("session", chat.id)
    for number in range(10_000):
        chunk = loom.load_text(f"{NOTES} {number}", name=f"notes {number}")
        say("chunk", chunk.id)
        chat.activate(chunk.id)
        chat.warm()
        chat.remove(chunk.id)
        loom.flush()
        say("stored", loom.composer.entry_id(loom.shelf.parts(chunk.id, chunk.name)[0], kvloom.types.ALONE))


def hold(loom: Loom, session: str) -> None:
    chat = loom.session(id=session)
    say("holding", chat.id)
    sys.stdin.readline()
    say("reply", repr(chat.generate("Still there?", max_tokens=2, temperature=0.0).text))


def just_end(loom: Loom, mode: str) -> None:
    """No close anywhere, one reply read to its end and one left in the middle."""
    chat = begin(loom, mode)
    say("session", chat.id)
    chat.generate("How many piers are there?", max_tokens=4, temperature=0.0)
    stream = chat.stream("Tell me more.", max_tokens=50, temperature=0.0)
    next(stream)
    globals()["kept"] = stream
    say("ending")


def interrupted(loom: Loom, mode: str) -> None:
    """Prints on its way until Ctrl-C comes."""
    chat = begin(loom, mode)
    say("session", chat.id)
    before = chat.tokens()
    try:
        while True:
            for _delta in chat.stream("Tell a very long story.", max_tokens=300, temperature=0.0):
                say("delta")
            chat.undo()
    except KeyboardInterrupt as stopped:
        kept = stopped  # its traceback holds on to the stream, as an interactive session does
    say("as-before", chat.tokens() == before and chat.history() == [])
    say("reply", repr(chat.generate("Hi", max_tokens=2).text))
    chat.close()
    say("cells", loom.engine.used_cells(), type(kept).__name__)


if __name__ == "__main__":
    job, model, home, *rest = sys.argv[1:]
    opened = kvloom.open(model, context=512, home=home)
    if job == "just_end":
        just_end(opened, *rest)
    else:
        with opened:
            globals()[job](opened, *(rest or [""]))
