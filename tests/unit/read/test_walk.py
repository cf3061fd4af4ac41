"""Which files lie behind paths: order, what is left out, links, loops."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kvloom.read.document import Skipped, SkipReason
from kvloom.read.walk import FoundFile, canonical, files, shown


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}.\n")


def found(*paths: Path) -> list[str]:
    return [item.name for item in files(paths) if isinstance(item, FoundFile)]


def skipped(*paths: Path) -> dict[str, Skipped]:
    return {item.name: item for item in files(paths) if isinstance(item, Skipped)}


def test_files_come_by_name_and_folders_in_between(tmp_path: Path) -> None:
    tree(tmp_path / "top", "b.txt", "a/z.txt", "a/b/c.txt", "c/a.txt", "B.txt")
    assert found(tmp_path / "top") == ["top/B.txt", "top/a/b/c.txt", "top/a/z.txt", "top/b.txt", "top/c/a.txt"]


def test_paths_come_in_the_order_they_are_given(tmp_path: Path) -> None:
    tree(tmp_path, "b.txt", "a.txt", "d/c.txt")
    assert found(tmp_path / "b.txt", tmp_path / "d", tmp_path / "a.txt") == ["b.txt", "d/c.txt", "a.txt"]


def test_what_tools_put_there_and_what_is_hidden_is_left_out_and_said(tmp_path: Path) -> None:
    tree(tmp_path / "top", ".git/config", "node_modules/x.js", "a/__pycache__/x.txt", ".env", "kept.txt")
    assert found(tmp_path / "top") == ["top/kept.txt"]
    left_out = skipped(tmp_path / "top")
    assert set(left_out) == {"top/.git", "top/node_modules", "top/a/__pycache__", "top/.env"}
    assert {item.reason for item in left_out.values()} == {SkipReason.LEFT_OUT}
    assert all("name it itself" in item.why for item in left_out.values())


def test_what_is_hidden_is_read_where_it_is_named(tmp_path: Path) -> None:
    tree(tmp_path, ".notes/a.txt", ".todo")
    assert found(tmp_path / ".notes", tmp_path / ".todo") == [".notes/a.txt", ".todo"]


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    (item,) = files([tmp_path])
    assert isinstance(item, Skipped)
    assert item.reason is SkipReason.EMPTY
    assert "empty folder" in item.why


def test_a_path_that_is_not_there_says_so(tmp_path: Path) -> None:
    (item,) = files([tmp_path / "missing.txt"])
    assert isinstance(item, Skipped)
    assert (item.name, item.reason) == ("missing.txt", SkipReason.GONE)


def test_a_path_that_no_file_can_have_says_so() -> None:
    (item,) = files([Path("a\x00b")])
    assert isinstance(item, Skipped)
    assert item.reason is SkipReason.UNREADABLE


def test_links_that_lead_round_end(tmp_path: Path) -> None:
    tree(tmp_path / "top", "a/b/c.txt")
    (tmp_path / "top/a/b/up").symlink_to("../..")
    (tmp_path / "top/a/self").symlink_to(".")
    (tmp_path / "top/x").symlink_to("y")
    (tmp_path / "top/y").symlink_to("x")
    assert found(tmp_path / "top") == ["top/a/b/c.txt"]
    why = skipped(tmp_path / "top")
    assert why["top/a/b/up"].reason is SkipReason.REPEATED
    assert why["top/a/self"].reason is SkipReason.REPEATED
    assert why["top/x"].reason is SkipReason.UNREADABLE


def test_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    assert skipped(tmp_path / "link")["link"].why == "is a link to nothing"


def test_a_link_out_of_the_folder_is_left_out_and_one_inside_is_followed_once(tmp_path: Path) -> None:
    tree(tmp_path, "outside/secret.txt", "top/real/a.txt")
    (tmp_path / "top/inside").symlink_to("real")
    (tmp_path / "top/leak").symlink_to("../outside/secret.txt")
    assert found(tmp_path / "top") == ["top/inside/a.txt"]
    why = skipped(tmp_path / "top")
    assert why["top/leak"].reason is SkipReason.LEFT_OUT
    assert "outside of the folder" in why["top/leak"].why
    assert why["top/real"].reason is SkipReason.REPEATED


def test_a_file_named_twice_comes_once(tmp_path: Path) -> None:
    tree(tmp_path, "a.txt")
    assert found(tmp_path / "a.txt", tmp_path, tmp_path / "a.txt") == ["a.txt"]


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    why = skipped(tmp_path / "pipe", Path("/dev/null"))
    assert [item.reason for item in why.values()] == [SkipReason.NOT_TEXT] * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
def test_a_folder_that_may_not_be_listed_says_so(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert skipped(tmp_path)[f"{tmp_path.name}/closed"].reason is SkipReason.UNREADABLE


def test_folders_deeper_than_the_stack_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1_100):
            Path("d").mkdir()
            os.chdir("d")
        Path("bottom.txt").write_text("here")
        os.chdir(tmp_path)
        items = list(files([Path("d")]))
    finally:
        # Python's own removal of trees recurses, and would fail after the test.
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
    assert len(items) == 1
    assert items[0].name.endswith("d/bottom.txt")


def test_names_that_are_no_unicode_or_steer_a_terminal_are_shown_harmlessly(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\x1b[31m.txt")
    path.write_text("words")
    (item,) = files([path])
    assert isinstance(item, FoundFile)
    assert item.name == "caf\ufffd\ufffd[31m.txt"
    assert item.path == path
    assert shown("plain – ü.txt") == "plain – ü.txt"


def test_a_file_has_one_path_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/b.txt")
    monkeypatch.chdir(tmp_path / "a")
    real = Path(os.path.realpath(tmp_path)) / "a"
    assert canonical("b.txt") == canonical("../a/b.txt") == real / "b.txt"
    assert canonical(".") == canonical("../a") == real
