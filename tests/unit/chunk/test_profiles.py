"""Profiles: saved, filled, expanded."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvloom.chunk.database import Database
from kvloom.chunk.profiles import Profile, ProfileStore, expand
from kvloom.errors import ContentError, StoreError, UsageError

REVIEW = Profile(
    "review", ("src/{module}/*.py", "abcdef12"), "Review {module} for {who}; use {{braces}}.", {"fidelity": "exact"}
)


def test_a_profile_is_saved_listed_replaced_and_deleted(database: Database) -> None:
    store = ProfileStore(database)
    store.save(REVIEW)
    store.save(Profile("ask"))
    assert store.get("review") == REVIEW
    assert [profile.name for profile in store.list()] == ["ask", "review"]
    store.save(Profile("review", system="other"))
    assert store.get("review").system == "other"
    store.delete("review")
    with pytest.raises(UsageError, match="no profile is called 'reviw'"):
        store.get("reviw")
    with pytest.raises(UsageError):
        store.delete("review")


def test_a_near_name_is_suggested(database: Database) -> None:
    store = ProfileStore(database)
    store.save(REVIEW)
    with pytest.raises(UsageError, match="did you mean review"):
        store.get("reviw")


def test_slots_are_filled_everywhere_and_braces_can_be_written(database: Database) -> None:
    assert REVIEW.slots == ("module", "who")
    filled = REVIEW.fill({"module": "text", "who": "{me}"})
    assert filled.sources == ("src/text/*.py", "abcdef12")
    assert filled.system == "Review text for {me}; use {braces}."


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "module=… who=…"),
        ({"module": "a"}, "who=…"),
        ({"module": "a", "who": "b", "x": "c"}, "no slot 'x'.*module"),
    ],
)
def test_missing_and_unknown_slots_are_refused_by_name(values: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        REVIEW.fill(values)


def test_globs_are_read_afresh_sorted_and_leave_hidden_files_out(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "sub/c.py", ".git/d.py", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [p.name for p in expand("*.py", tmp_path)] == ["a.py", "b.py"]
    assert [p.name for p in expand("**/*.py", tmp_path)] == ["a.py", "b.py", "c.py"]
    assert [p.name for p in expand(".git/*.py", tmp_path)] == ["d.py"]
    assert expand(str(tmp_path / "e.txt"), Path("/")) == (tmp_path / "e.txt",)
    (tmp_path / "0.py").write_text("x")
    assert [p.name for p in expand("*.py", tmp_path)] == ["0.py", "a.py", "b.py"]


def test_what_is_no_path_is_left_as_a_reference_and_an_empty_glob_is_an_error(tmp_path: Path) -> None:
    assert expand("abcdef12", tmp_path) == ()
    with pytest.raises(ContentError, match="names no file"):
        expand("*.rs", tmp_path)


@pytest.mark.parametrize("name", ["", "two words", "a/b", "x" * 65])
def test_a_name_that_cannot_be_typed_is_refused(database: Database, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a profile's name"):
        ProfileStore(database).save(Profile(name))


def test_a_damaged_profile_is_an_error_that_names_it(database: Database) -> None:
    store = ProfileStore(database)
    store.save(REVIEW)
    database.execute("UPDATE profiles SET body = '{'")
    with pytest.raises(StoreError, match="'review' is damaged"):
        store.get("review")
