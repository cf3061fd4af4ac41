"""The session log: append-only, whole or not at all, one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvloom.chunk.database import Database
from kvloom.context.manifest import Tokens
from kvloom.errors import (
    NothingToUndoError,
    SessionBusyError,
    SessionClosedError,
    SessionError,
    StoreError,
    UnknownSessionError,
    UsageError,
)
from kvloom.session.log import SessionLog
from kvloom.types import SessionId


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def log(database: Database) -> SessionLog:
    return SessionLog(database)


def runs(*ids: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {Tokens(run).digest: run for run in ids}


def test_appended_manifests_form_a_log_whose_last_is_the_head(log: SessionLog) -> None:
    session = log.create("model")
    assert log.get(session).head == ()
    with log.writer(session) as writer:
        first, second = writer.append("load", b"one"), writer.append("generate", b"two")
    head = log.head(session)
    assert (head.id, head.op, head.body, head.parent) == (second, "generate", b"two", (first,))
    assert [(m.op, m.parent) for m in log.manifests(session)] == [("load", ()), ("generate", (first,))]
    assert log.get(session).num_manifests == 2


def test_undo_and_redo_move_the_head_and_delete_nothing(log: SessionLog) -> None:
    session = log.create("model")
    with log.writer(session) as writer:
        for body in (b"one", b"two", b"three"):
            writer.append("op", body)
        assert [writer.undo().body, writer.undo().body] == [b"two", b"one"]
        with pytest.raises(NothingToUndoError):
            writer.undo()
        assert log.head(session).body == b"one"
        assert [writer.redo().body, writer.redo().body] == [b"two", b"three"]
        with pytest.raises(NothingToUndoError):
            writer.redo()
    assert log.get(session).num_manifests == 3


def test_redo_follows_the_latest_branch(log: SessionLog) -> None:
    session = log.create("model")
    with log.writer(session) as writer:
        writer.append("op", b"one")
        writer.append("op", b"two")
        writer.undo()
        writer.append("op", b"other")
        writer.undo()
        assert writer.redo().body == b"other"


def test_the_head_may_move_to_any_manifest_of_its_own_session_only(log: SessionLog) -> None:
    one, two = log.create("model"), log.create("model")
    with log.writer(one) as first, log.writer(two) as second:
        start = first.append("op", b"start")
        first.append("op", b"later")
        foreign = second.append("op", b"foreign")
        first.set_head(start)
        assert log.head(one).body == b"start"
        with pytest.raises(SessionError, match="does not belong"):
            first.set_head(foreign)


def test_token_runs_are_stored_once_and_checked(log: SessionLog, database: Database) -> None:
    session = log.create("model")
    shared = runs((1, 2, 3), (), (-1, 2**31 - 1))
    with log.writer(session) as writer:
        writer.append("op", b"one", shared)
        writer.append("op", b"two", shared)
        with pytest.raises(SessionError, match="does not hash"):
            writer.append("op", b"three", {"0" * 64: (1,)})
    assert all(log.tokens(digest) == ids for digest, ids in shared.items())
    assert database.rows("SELECT count(*) FROM token_runs") == [(3,)]
    assert log.get(session).num_manifests == 2
    database.execute("UPDATE token_runs SET ids = x'00000000'")
    with pytest.raises(StoreError, match="damaged"):
        log.tokens(Tokens((1, 2, 3)).digest)
    with pytest.raises(StoreError, match="not in the log"):
        log.tokens("f" * 64)


def test_turns_are_stored_with_the_manifest_that_names_them_first(log: SessionLog, database: Database) -> None:
    one, two = log.create("model"), log.create("model")
    with log.writer(one) as first, log.writer(two) as second:
        first.append("generate", b"m1", turns={"t1": b"hello"})
        first.append("generate", b"m2", turns={"t2": b"again"})
        second.append("generate", b"m3", turns={"t1": b"another"})
        first.undo()
    assert log.turns(one) == {"t1": b"hello", "t2": b"again"}
    assert log.turns(two) == {"t1": b"another"}
    database.execute("UPDATE turns SET body = x'00' WHERE id = 't2'")
    with pytest.raises(StoreError, match=r"turn t2 .*damaged"):
        log.turns(one)


def test_a_damaged_manifest_is_never_handed_out(log: SessionLog, database: Database) -> None:
    session = log.create("model")
    with log.writer(session) as writer:
        writer.append("op", b"good")
        number = writer.append("op", b"body")
    database.execute("UPDATE manifests SET body = ? WHERE id = ?", (b"bodx", number))
    with pytest.raises(StoreError, match="damaged"):
        log.head(session)


def test_a_session_is_found_by_name_or_by_the_start_of_its_id(log: SessionLog) -> None:
    session = log.create("model", "my work")
    for ref in ("my work", session, session[:6]):
        assert log.resolve(ref) == session
    for ref in ("other", session[:2], "", "%"):
        with pytest.raises(UnknownSessionError, match="kvloom sessions list"):
            log.resolve(ref)
    with pytest.raises(UnknownSessionError):
        log.get(SessionId("0" * 16))


def test_names_are_unique_and_may_be_changed_or_taken_away(log: SessionLog) -> None:
    one, two = log.create("model", "one"), log.create("model")
    with pytest.raises(UsageError, match="already called 'one'"):
        log.create("model", "one")
    with pytest.raises(UsageError, match="already called 'one'"):
        log.rename(two, "one")
    log.rename(one, "")
    log.rename(two, "one")
    assert log.resolve("one") == two
    assert log.get(one).name == ""
    with pytest.raises(UnknownSessionError):
        log.rename(SessionId("0" * 16), "x")
    with pytest.raises(UsageError, match="one line"):
        log.rename(one, "two\nlines")


def test_sessions_are_listed_with_the_last_used_first(database: Database) -> None:
    times = iter(range(100))
    log = SessionLog(database, clock=lambda: float(next(times)))
    old, new = log.create("model"), log.create("model")
    assert [record.id for record in log.list()] == [new, old]
    with log.writer(old) as writer:
        writer.append("op", b"x")
    assert [record.id for record in log.list()] == [old, new]


def test_a_session_has_one_writer_and_the_error_names_its_process(log: SessionLog) -> None:
    session = log.create("model")
    with log.writer(session):
        assert log.is_open(session)
        with pytest.raises(SessionBusyError, match=f"process {os.getpid()}"):
            log.open_writer(session)
        with pytest.raises(SessionBusyError):
            log.delete(session)
    assert not log.is_open(session)
    with log.writer(session) as writer:
        writer.append("op", b"x")


def test_a_closed_writer_refuses(log: SessionLog) -> None:
    writer = log.open_writer(log.create("model"))
    writer.close()
    writer.close()
    for use in (lambda: writer.append("op", b"x"), writer.undo, writer.redo):
        with pytest.raises(SessionClosedError):
            use()


def test_a_deleted_session_leaves_no_byte_and_takes_only_its_own_runs(log: SessionLog, tmp_path: Path) -> None:
    gone, kept = log.create("model", "gone"), log.create("model")
    shared, own = runs((7, 8, 9)), runs(tuple(range(5000, 5400)))
    with log.writer(gone) as writer, log.writer(kept) as other:
        writer.append("op", b"purple-elephant", shared | own)
        other.append("op", b"kept", shared)
    log.delete(gone)
    with pytest.raises(UnknownSessionError):
        log.get(gone)
    (own_digest,) = own
    with pytest.raises(StoreError, match="not in the log"):
        log.tokens(own_digest)
    (shared_digest,) = shared
    assert log.tokens(shared_digest) == (7, 8, 9)
    for path in (tmp_path / "home").iterdir():
        assert not path.is_file() or b"purple-elephant" not in path.read_bytes(), path.name


def test_an_exported_session_comes_back_whole_in_another_home(log: SessionLog, tmp_path: Path) -> None:
    session = log.create("model", "travels")
    tokens = runs((1, 2), (3,))
    with log.writer(session) as writer:
        writer.append("load", b"\x00\xff one", tokens, {"t": b"\xfe turn"})
        writer.append("generate", b"two", runs((3,)))
        writer.undo()
    exported = json.loads(json.dumps(log.export(session)))
    database = Database(tmp_path / "other")
    there = SessionLog(database)
    there.create("model")
    assert there.load(exported) == session
    assert there.get(session).name == "travels"
    assert [(m.op, m.body) for m in there.manifests(session)] == [("load", b"\x00\xff one"), ("generate", b"two")]
    assert there.head(session).body == b"\x00\xff one"
    assert there.turns(session) == {"t": b"\xfe turn"}
    assert all(there.tokens(digest) == ids for digest, ids in tokens.items())
    with there.writer(session) as writer:
        assert writer.redo().body == b"two"
    database.close()


def test_an_import_beside_the_original_gets_an_id_of_its_own(log: SessionLog) -> None:
    session = log.create("model", "name")
    with log.writer(session) as writer:
        writer.append("op", b"x")
    copy = log.load(log.export(session))
    assert copy != session
    assert log.get(copy).name == ""
    assert log.head(copy).body == b"x"
    with pytest.raises(UsageError, match="already called"):
        log.load(log.export(session), name="name")
    assert log.get(log.load(log.export(session), name="new")).name == "new"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"session": {}},
        {"manifests": [{"id": 1}]},
        {"manifests": None},
        {"head": [77]},
        {"tokens": {"0" * 64: ["x"]}},
        {"tokens": []},
        {"turns": {"t": "no base64!"}},
    ],
)
def test_what_is_no_export_is_refused_and_nothing_stays(log: SessionLog, change: dict[str, object]) -> None:
    session = log.create("model")
    with log.writer(session) as writer:
        writer.append("op", b"x")
    with pytest.raises(UsageError):
        log.load(log.export(session) | change)
    assert len(log.list()) == 1


def test_an_import_with_altered_tokens_is_refused(log: SessionLog) -> None:
    session = log.create("model")
    (digest,) = runs((1, 2, 3))
    with log.writer(session) as writer:
        writer.append("op", b"x", runs((1, 2, 3)))
    exported = log.export(session)
    exported["tokens"][digest] = [1, 2, 4]
    with pytest.raises(SessionError, match="does not hash"):
        log.load(exported)
    assert len(log.list()) == 1


def test_bodies_may_be_rewritten_for_a_purge_and_the_old_bytes_are_gone(log: SessionLog, tmp_path: Path) -> None:
    session = log.create("model")
    with log.writer(session) as writer:
        writer.append("op", b"keep")
        writer.append("op", b"has purple-elephant in it")
    changed = log.rewrite(lambda m: m.body.replace(b"purple-elephant", b"-") if b"purple" in m.body else None)
    assert changed == 1
    assert [m.body for m in log.manifests(session)] == [b"keep", b"has - in it"]
    for path in (tmp_path / "home").iterdir():
        assert not path.is_file() or b"purple-elephant" not in path.read_bytes(), path.name


_WRITER = """
import hashlib, struct, sys
from pathlib import Path
from kvloom.chunk.database import Database
from kvloom.session.log import SessionLog
log = SessionLog(Database(Path(sys.argv[1])))
writer = log.open_writer(sys.argv[2])
number = 0
while True:
    ids = tuple(range(number, number + 50))
    digest = hashlib.sha256(struct.pack("<50i", *ids)).hexdigest()
    writer.append("op", b"body %d " % number * 200, {digest: ids})
    print(number, flush=True)
    number += 1
"""


def test_a_killed_writer_loses_nothing_that_was_acknowledged_and_frees_its_session(tmp_path: Path) -> None:
    home = tmp_path / "home"
    database = Database(home)
    log = SessionLog(database)
    for num_lines in (1, 7, 30):
        session = log.create("model")
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(home), session], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(num_lines)]
        with pytest.raises(SessionBusyError, match=f"process {process.pid}"):
            log.open_writer(session)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait(30)
        process.stdout.close()
        acknowledged = [int(line) for line in lines if line.endswith("\n")]
        manifests = log.manifests(session)
        assert len(acknowledged) >= num_lines
        assert len(manifests) in (len(acknowledged), len(acknowledged) + 1)
        for number, manifest in enumerate(manifests):
            assert manifest.body == b"body %d " % number * 200
            assert log.tokens(Tokens(tuple(range(number, number + 50))).digest)
        assert log.head(session).id == manifests[-1].id
        with log.writer(session) as writer:
            writer.append("op", b"goes on")
    database.close()


def test_a_session_that_is_deleted_meanwhile_is_told_of_as_it_stood(
    database: Database, log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Tokens(tuple(range(40)))
    with log.writer(session := log.create("model")) as writer:
        writer.append("new", b"body", tokens=runs(run.ids))
    # Its own clean-up waits for our snapshot, and gives up.
    monkeypatch.setattr("kvloom.sqlite_files.BUSY_TIMEOUT_S", 0.2)
    other = Database(database.path.parent)
    with log.snapshot():
        [record] = log.list()
        deleting = threading.Thread(target=SessionLog(other).delete, args=(session,))
        deleting.start()
        deleting.join(20)
        assert not deleting.is_alive()
        assert log.manifest(record.head[0]).body == b"body"
        assert log.tokens(run.digest) == run.ids
    assert not log.list()
    other.close()
