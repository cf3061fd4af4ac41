"""Lists and downloads model files from the Hugging Face hub, over plain HTTP. Knows neither registry nor folders.

`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean elsewhere. A broken download goes on where it ended.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from kvloom.errors import ModelFetchError, ModelNotFoundError
from kvloom.model.registry import HubName, quant_of

__all__ = ["ByteProgress", "HubFile", "download", "hub_files", "partial_path", "url_of"]

ByteProgress = Callable[[int, int], None]
"""Called with (done_bytes, total_bytes)."""

CONNECT_TIMEOUT_S = 6.0
"""A hub that cannot be reached must not hold up the other source for long."""
READ_BYTES = 1024**2
MAX_LISTING_BYTES = 16 * 1024**2
PREFERRED_QUANTS = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "IQ4_XS", "Q8_0")
"""Where a name says no quant: the usual compromise first."""


@dataclass(frozen=True)
class HubFile:
    """A file in a hub repository. `sha256` is None for files that the hub keeps no hash of."""

    repo: str
    name: str
    size_bytes: int
    sha256: str | None


def url_of(repo: str, file_name: str) -> str:
    return f"{_endpoint()}/{quote(repo)}/resolve/main/{quote(file_name)}"


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co").rstrip("/")


def hub_files(name: HubName) -> list[HubFile]:
    """The file or, of a model cut into several, the files that `name` means.

    Raises ModelNotFoundError, with the quants that there are; ModelFetchError where the hub cannot be reached.
    """
    with _open(f"{_endpoint()}/api/models/{quote(name.repo)}/tree/main?recursive=true", name.repo) as answer:
        raw = answer.read(MAX_LISTING_BYTES)
    try:
        listing = msgspec.json.decode(raw)
        files = [_file_of(name.repo, item) for item in listing if str(item.get("path", "")).endswith(".gguf")]
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError) as error:
        raise ModelFetchError(f"the hub's list of {name.repo} cannot be read: {error}") from error
    files = [file for file in files if "mmproj" not in file.name.lower()]
    by_quant: dict[str, list[HubFile]] = {}
    for file in files:
        by_quant.setdefault(quant_of(Path(file.name).name).upper(), []).append(file)
    if not by_quant:
        raise ModelNotFoundError(f"{name.repo} holds no GGUF files; look for a repository that ends in -GGUF")
    wanted = (name.quant.upper(),) if name.quant else (*PREFERRED_QUANTS, *sorted(by_quant))
    for quant in wanted:
        if chosen := by_quant.get(quant):
            return _one_model(chosen)
    raise ModelNotFoundError(f"{name.repo} holds no {name.quant}; it holds {', '.join(sorted(by_quant))}")


def _file_of(repo: str, item: dict[str, Any]) -> HubFile:
    lfs = item.get("lfs")
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    return HubFile(repo, str(item["path"]), int(item["size"]), sha256 if isinstance(sha256, str) else None)


def _one_model(files: list[HubFile]) -> list[HubFile]:
    """The parts of one cut model, or the first single file."""
    first = min(files, key=lambda file: file.name)
    cut = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", first.name)
    if cut is None:
        return [first]
    parts = sorted((file for file in files if file.name.startswith(cut[1])), key=lambda file: file.name)
    if len(parts) != int(cut[2]):
        raise ModelNotFoundError(f"{first.repo} holds {len(parts)} of the {int(cut[2])} parts of {cut[1]}")
    return parts


def partial_path(target: Path) -> Path:
    """Where a download to `target` lies until it is whole."""
    return target.with_name(f".{target.name}.part")


def download(file: HubFile, target: Path, on_progress: ByteProgress) -> None:
    """Fetch `file` to `target` (whole or not at all), going on where an earlier attempt ended.

    Raises ModelFetchError where it cannot be had or its SHA-256 differs, OSError for the disk's own faults.
    """
    partial = partial_path(target)
    _fetch_rest(file, partial, on_progress)
    if file.sha256 is not None and (found := _sha256(partial)) != file.sha256:
        partial.unlink()
        raise ModelFetchError(
            f"{file.repo}/{file.name} has SHA-256 {found}, expected {file.sha256}; it was thrown away"
        )
    with partial.open("rb+") as written:
        os.fsync(written.fileno())
    partial.replace(target)


def _fetch_rest(file: HubFile, partial: Path, on_progress: ByteProgress) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    if done > file.size_bytes:
        partial.unlink()
        done = 0
    if done == file.size_bytes:
        return
    headers = {"Range": f"bytes={done}-"} if done else {}
    with _open(url_of(file.repo, file.name), file.repo, headers) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        with partial.open("ab" if done else "wb") as sink:
            try:
                while block := answer.read(READ_BYTES):
                    sink.write(block)
                    done += len(block)
                    on_progress(done, file.size_bytes)
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                raise ModelFetchError(
                    f"{file.name} broke off at {done:,} of {file.size_bytes:,} bytes: {error}"
                ) from error
    if done != file.size_bytes:
        if done > file.size_bytes:
            partial.unlink()
        raise ModelFetchError(
            f"{file.name} ended at {done:,} bytes, expected {file.size_bytes:,}; run it again to go on"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _open(url: str, repo: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
        raise ModelFetchError("the hub is switched off by HF_HUB_OFFLINE")
    request = urllib.request.Request(url, headers=headers or {})
    if token := os.environ.get("HF_TOKEN", "").strip():
        # Not sent on to where the hub redirects: file stores refuse it, and need none.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        answer = urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refusal(error.code, repo) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelFetchError(f"the hub cannot be reached ({reason})") from error
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def _refusal(code: int, repo: str) -> ModelFetchError | ModelNotFoundError:
    if code in (401, 403):
        return ModelFetchError(
            f"the hub refuses {repo} (HTTP {code}): there is no such model, or it needs a token in HF_TOKEN"
        )
    if code == http.HTTPStatus.NOT_FOUND:
        return ModelNotFoundError(f"the hub has no {repo}, or not that file")
    return ModelFetchError(f"the hub answered {repo} with HTTP {code}")
