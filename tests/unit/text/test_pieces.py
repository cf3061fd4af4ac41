"""Pieces: what is special, what is shared, and that the pieces of many turns make the whole prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.text.pieces import DEFAULT_SYSTEM, Piece, PieceKind, PromptBuilder, num_equal_pieces
from kvloom.text.template import Message
from tests.unit.text import templates
from tests.unit.text.vocabularies import SPECIALS, LexiconVocabulary

ALL = (templates.CHATML, templates.TRIMMING, templates.NO_SYSTEM, templates.THINKING)
VOCABULARIES = {
    "bpe": LexiconVocabulary(templates.CHATML),
    "spm": LexiconVocabulary(templates.CHATML, is_spm=True),
    "spm-bos": LexiconVocabulary(templates.NO_SYSTEM, is_spm=True, has_bos=True),
}


def builder(source: str = templates.CHATML) -> PromptBuilder:
    return PromptBuilder(LexiconVocabulary(source))


def grown(prompts: PromptBuilder, chunks: tuple[Piece, ...], talk: list[tuple[str, str]]) -> list[Piece]:
    """The pieces as a session makes them, turn by turn."""
    pieces = [prompts.head("Be brief."), *chunks]
    history: list[Message] = []
    for question, answer in talk:
        pieces.append(prompts.turn_prompt(history, question))
        sampled = prompts.tokenizer.content(answer)
        pieces.append(Piece(PieceKind.REPLY, sampled, answer))
        history += [Message("user", question), Message("assistant", answer, tokens=sampled)]
    return pieces


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES.keys())
@given(text=st.lists(st.sampled_from([*SPECIALS, "\n", " ", "the user", "é", "\n\n", "x"]), min_size=1).map("".join))
def test_content_never_becomes_a_special_token_wherever_it_stands(vocabulary: LexiconVocabulary, text: str) -> None:
    prompts = PromptBuilder(vocabulary)
    empty = prompts.render("s", (), [Message("user", "q"), Message("assistant", "a"), Message("user", "q")])
    full = prompts.render(
        "s " + text + " s",
        prompts.chunk_pieces(text.replace("\n", " "), text),
        [Message("user", text), Message("assistant", text), Message("user", text)],
    )

    def specials(tokens: tuple[int, ...]) -> list[int]:
        return [token for token in tokens if vocabulary.is_control(token)]

    assert specials(full.tokens) == specials(empty.tokens)


@pytest.mark.parametrize("is_spm", [False, True])
def test_words_of_the_template_that_are_plain_tokens_cannot_be_forged_either(is_spm: bool) -> None:
    vocabulary = LexiconVocabulary(templates.TOOLS, is_spm=is_spm)
    (forged,) = LexiconVocabulary().tokenize(b"<tool_call>", parse_special=False)
    (plain,) = LexiconVocabulary().tokenize(b"[INST]", parse_special=False)
    prompts = PromptBuilder(vocabulary)
    text = "a <tool_call>b <tool_call><tool_call> [INST]"
    tokens = prompts.tokenizer.content(text)
    assert forged not in tokens
    assert plain in tokens
    assert prompts.tokenizer.text(tokens) == text
    assert forged in prompts.tokenizer.template(text)


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES.keys())
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=80))
def test_every_piece_spells_exactly_its_text(vocabulary: LexiconVocabulary, text: str) -> None:
    prompts = PromptBuilder(vocabulary)
    rendered = prompts.render("s", prompts.chunk_pieces("n", text), [Message("user", text)])
    for piece in rendered.pieces:
        if piece.kind is PieceKind.CHUNK or not vocabulary.is_spm:
            assert prompts.tokenizer.text(piece.tokens) == piece.text


@pytest.mark.parametrize("is_spm", [False, True])
def test_equal_content_has_equal_ids_anywhere(is_spm: bool) -> None:
    prompts = PromptBuilder(LexiconVocabulary(templates.CHATML, is_spm=is_spm))
    one, two = prompts.chunk_pieces("a.py", "the file\n"), prompts.chunk_pieces("b.py", "in the\n")
    talk = [Message("user", "q")]
    forward = prompts.render("s", (*one, *two), talk).pieces
    backward = prompts.render("other", (*two, *one), talk).pieces
    assert forward[1].tokens == backward[2].tokens == one[0].tokens
    assert forward[2].tokens == backward[1].tokens == two[0].tokens


def test_a_chunk_is_one_run_with_its_header_and_separator() -> None:
    (piece,) = builder().chunk_pieces("src/utils.py", "def f(): ...")
    assert piece.text == '\n\n<file name="src/utils.py">\ndef f(): ...\n</file>'
    assert (piece.kind, piece.ref, piece.part) == (PieceKind.CHUNK, "src/utils.py", 0)


def test_a_name_cannot_break_out_of_its_header() -> None:
    (piece,) = builder().chunk_pieces('a">\n<b', "x")
    assert piece.text.startswith('\n\n<file name="a\'> <b">\n')


def test_a_long_file_becomes_parts_that_name_it_and_hold_all_of_it() -> None:
    body = "".join(f"def f{i}():\n    return {i} * x{i}\n\n" for i in range(800))
    pieces = builder().chunk_pieces("big.py", body)
    assert len(pieces) > 3
    assert [piece.part for piece in pieces] == list(range(len(pieces)))
    joined = "".join(p.text.split(">\n", 1)[1].removesuffix("</file>") for p in pieces)
    assert joined == body
    assert all('name="big.py" continued>' in piece.text for piece in pieces[1:])


def test_the_head_is_bos_once_and_the_system_text_or_ours() -> None:
    vocabulary = LexiconVocabulary(templates.TRIMMING, has_bos=True)
    prompts = PromptBuilder(vocabulary)
    head = prompts.head("  Be brief.\n")
    assert head.tokens[0] == vocabulary.bos
    assert head.tokens.count(head.tokens[0]) == 1
    assert head.text == "<s><|im_start|>system\n\nBe brief."
    assert prompts.head(" ").text.endswith(DEFAULT_SYSTEM)


def test_a_later_turn_begins_with_what_ends_the_reply_before_it() -> None:
    prompts = builder()
    first = prompts.turn_prompt([], "one")
    assert first.text == "<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    second = prompts.turn_prompt([Message("user", "one"), Message("assistant", "two")], "three")
    assert second.text == "<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    assert second.ref == "1"


@pytest.mark.parametrize("source", ALL)
def test_pieces_made_turn_by_turn_are_the_pieces_of_the_whole_render(source: str) -> None:
    prompts = builder(source)
    chunks = prompts.chunk_pieces("a.py", "the file\n") + prompts.chunk_pieces("b.md", "# in\n")
    talk = [("one", "two"), ("  three\n", "four\n"), ("five <|im_end|>", "six")]
    pieces = grown(prompts, chunks, talk)
    messages = []
    for question, answer in talk:
        sampled = prompts.tokenizer.content(answer)
        messages += [Message("user", question), Message("assistant", answer, tokens=sampled)]
    whole = prompts.render("Be brief.", chunks, messages, add_generation_prompt=False)
    assert [piece.kind for piece in whole.pieces] == [piece.kind for piece in pieces]
    assert num_equal_pieces(pieces, whole.pieces) == len(pieces)


def test_ids_as_sampled_are_kept_even_where_tokenizing_again_would_differ() -> None:
    prompts = builder()
    sampled = tuple(b"the user")
    assert sampled != prompts.tokenizer.content("the user")
    rendered = prompts.render("s", (), [Message("user", "q"), Message("assistant", "the user", tokens=sampled)])
    assert rendered.pieces[-1].tokens == sampled


def test_a_reply_loses_its_reasoning_in_later_turns_and_only_there() -> None:
    prompts = builder(templates.THINKING)
    vocabulary = prompts.tokenizer.vocabulary
    sampled = tuple(vocabulary.tokenize(b"<think>\nhm\n</think>\n\ntwo", parse_special=True))
    reply = Message("assistant", "two", reasoning="hm", tokens=sampled)
    last = prompts.render("s", (), [Message("user", "one"), reply], add_generation_prompt=False)
    assert last.pieces[-1].tokens == sampled
    later = prompts.render("s", (), [Message("user", "one"), reply, Message("user", "three")])
    assert later.pieces[2].text == "two"
    assert num_equal_pieces(last.pieces, later.pieces) == 2


def test_a_prompt_that_opens_the_reasoning_says_so() -> None:
    prompts = builder(templates.OPENS_THINKING)
    assert prompts.reasoning_tags.starts_inside
    assert not builder(templates.THINKING).reasoning_tags.starts_inside


def test_switching_chunks_changes_no_other_piece() -> None:
    prompts = builder(templates.NO_SYSTEM)
    chunks = prompts.chunk_pieces("a.py", "the file\n")
    talk = [Message("user", "q"), Message("assistant", "a"), Message("user", "r")]
    on, off = prompts.render("s", chunks, talk).pieces, prompts.render("s", (), talk).pieces
    assert (on[0], *on[2:]) == off


def test_byte_offsets_tell_where_each_token_stands() -> None:
    prompts = builder()
    tokens = prompts.tokenizer.content("the é user")
    offsets = prompts.tokenizer.byte_offsets(tokens)
    assert offsets[0] == 0
    assert offsets[-1] == len("the é user".encode())
    assert len(offsets) == len(tokens) + 1
