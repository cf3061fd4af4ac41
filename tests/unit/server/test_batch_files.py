"""A batch's files: mistakes by line before any work, finished lines that stay, torn ones that go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvloom.errors import ContentError, SessionBusyError, StoreReadOnlyError, UsageError
from kvloom.server.batch_files import MAX_TOLD, BatchOutput, prompt_key, read_batch, read_body


def request(custom_id: object = "a", **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi ☃"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_lines_are_read_in_order_and_their_bodies_again_from_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", request("a"), "", request("b", url="/v1/completions"))
    first, second = read_batch(source)
    assert (first.custom_id, first.url, first.model, first.number) == ("a", "/v1/chat/completions", "m", 1)
    assert (second.custom_id, second.number) == ("b", 3)
    for line in (first, second):
        assert json.loads(read_body(source, line)) == request()["body"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        (json.dumps(request()) + "x", "not valid JSON"),
        (request(custom_id=5), "`custom_id` must be a text"),
        (request(custom_id=""), "`custom_id` must be a text"),
        (request(method="GET"), "`method` must be POST, got 'GET'"),
        (request(url="/v1/files"), "`url` must be one of"),
        (request(body=[]), "`body` must be a JSON object"),
        (request(body={"messages": []}), "`body.model` is missing"),
        (request(body={"model": "m", "stream": True}), "`body.stream`"),
        ({**request(), "custom": 1}, "there is no field `custom`; did you mean `custom_id`?"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "x": NaN}}', "JSON"),
    ],
)
def test_a_mistake_names_file_and_line(tmp_path: Path, line: object, words: str) -> None:
    source = write(tmp_path / "in.jsonl", request("first"), line)
    with pytest.raises(UsageError) as caught:
        read_batch(source)
    assert f"{source}, line 2: " in str(caught.value)
    assert words in str(caught.value)


def test_two_lines_of_one_id_are_a_mistake_that_names_both(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", request("a"), request("b"), request("a"))
    with pytest.raises(UsageError, match="line 3: custom_id 'a' is that of line 1"):
        read_batch(source)


def test_many_mistakes_are_told_together_but_not_all(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *["{"] * (MAX_TOLD + 5))
    with pytest.raises(UsageError) as caught:
        read_batch(source)
    assert str(caught.value).count("not valid JSON") == MAX_TOLD
    assert str(caught.value).endswith("… and 5 more")


def test_an_empty_file_and_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no requests"):
        read_batch(write(tmp_path / "in.jsonl", ""))
    with pytest.raises(ContentError, match="cannot be read"):
        read_batch(tmp_path / "nothing")


def test_an_input_that_was_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", request("a"))
    (line,) = read_batch(source)
    write(source, request("b"))
    with pytest.raises(ContentError, match="was changed while the batch ran: line 1"):
        read_body(source, line)


def test_prompts_that_begin_alike_have_keys_that_do() -> None:
    def chat(*texts: str, **fields: Any) -> str:
        return prompt_key({"messages": [{"role": "user", "content": text} for text in texts], **fields})

    assert chat("same", "one").startswith(chat("same"))
    assert chat("same") != chat("other")
    parts = prompt_key({"messages": [{"role": "user", "content": [{"type": "text", "text": "same"}]}]})
    assert parts == chat("same")
    assert chat("x", tools=[{"a": 1}]).startswith('[{"a": 1}]')
    assert prompt_key({"prompt": [1, 2, 3]}) == "1,2,3"
    assert prompt_key({"input": "text", "instructions": "first"}) == "first\ntext"
    assert prompt_key({"messages": 5}) == ""


# --- the output ------------------------------------------------------------------------------------------------------


def line(custom_id: str) -> dict[str, Any]:
    return {"id": "x", "custom_id": custom_id, "response": {"status_code": 200, "body": {"t": "☃\ud800"}}}


def test_what_was_written_is_known_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with BatchOutput(path, "abc") as output:
        assert output.done == set()
        output.append(line("b"))
    with BatchOutput(path, "abc") as output:
        assert output.done == {"b"}
        output.append(line("a"))
    assert [json.loads(text)["custom_id"] for text in path.read_text().splitlines()] == ["b", "a"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("torn", ['{"id": "x", "custom_id": "b"', '{"custom_id": "b"}', "{", " "])
def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(line("a")) + "\n" + torn)
    with BatchOutput(path, "abc") as output:
        assert output.done == {"a"}
        output.append(line("b"))
    assert [json.loads(text)["custom_id"] for text in path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("foreign", ["hello", "[]", json.dumps(line("z")), '{"custom_id": 5}'])
def test_a_file_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(foreign + "\n")
    with pytest.raises(UsageError, match=r"line 1: .*name another file"):
        BatchOutput(path, "abc")
    assert path.read_text() == foreign + "\n"


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with BatchOutput(path, "a"), pytest.raises(SessionBusyError, match="another process writes"):
        BatchOutput(path, "a")
    BatchOutput(path, "a").close()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreReadOnlyError, match="cannot be written"):
        BatchOutput(tmp_path / "none" / "out.jsonl", "a")
