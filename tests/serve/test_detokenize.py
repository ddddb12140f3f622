"""Text of tokens as they come equals the text of all of them, whatever the tokenizer and however it is cut."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from colossus.serve.detokenize import Stops, Vocabulary
from tests.serve.api.doubles import byte_tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama 2's: BPE over pieces with a mark for the space, bytes for what no piece spells."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return tokenizer


def wordpiece_tokenizer() -> Tokenizer:
    """As BERT's: the space between words is the decoder's doing."""
    words = ["[UNK]", "the", "fox", "##es", "jump", "##ing", "!"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    return tokenizer


BYTES, PIECES, WORDS = byte_tokenizer(), sentencepiece_tokenizer(), wordpiece_tokenizer()


def streamed(vocabulary: Vocabulary, prompt: list[int], tokens: list[int], sizes: list[int]) -> str:
    detokenizer, parts, at = vocabulary.detokenizer(prompt, skip=vocabulary.special), [], 0
    for size in [*sizes, len(tokens)]:
        parts.append(detokenizer.push(tokens[at : at + size]))
        at += size
    return "".join(parts) + detokenizer.flush()


cuts = st.lists(st.integers(0, 5), max_size=30)


@settings(max_examples=120, deadline=None)
@given(text=st.text(max_size=60), sizes=cuts)
def test_any_text_comes_back(text: str, sizes: list[int]) -> None:
    vocabulary = Vocabulary(BYTES)
    assert streamed(vocabulary, [], BYTES.encode(text).ids, sizes) == BYTES.decode(BYTES.encode(text).ids)


@settings(max_examples=120, deadline=None)
@given(tokens=st.lists(st.integers(0, BYTES.get_vocab_size() + 3), max_size=40), sizes=cuts)
def test_any_tokens_are_written_as_the_library_writes_them(tokens: list[int], sizes: list[int]) -> None:
    """Half characters, special tokens and ids beyond the tokenizer's included."""
    assert streamed(Vocabulary(BYTES), [], tokens, sizes) == BYTES.decode(tokens)


@settings(max_examples=120, deadline=None)
@given(before=st.text("abc the,", min_size=1, max_size=10), text=st.text(max_size=40), sizes=cuts)
def test_pieces_go_on_where_the_prompt_ended(before: str, text: str, sizes: list[int]) -> None:
    prompt, answer = PIECES.encode(before, add_special_tokens=False).ids, PIECES.encode(text, add_special_tokens=False).ids
    whole = PIECES.decode(prompt + answer)
    assert PIECES.decode(prompt) + streamed(Vocabulary(PIECES), prompt, answer, sizes) == whole


@settings(max_examples=50, deadline=None)
@given(prompt=st.lists(st.integers(0, 6), max_size=10), tokens=st.lists(st.integers(0, 6), max_size=10), sizes=cuts)
def test_words_get_their_spaces(prompt: list[int], tokens: list[int], sizes: list[int]) -> None:
    assert WORDS.decode(prompt) + streamed(Vocabulary(WORDS), prompt, tokens, sizes) == WORDS.decode(prompt + tokens)


def test_a_token_alone() -> None:
    vocabulary = Vocabulary(BYTES)
    assert b"".join(map(vocabulary.token_bytes, BYTES.encode("größe 😀").ids)) == "größe 😀".encode()
    assert vocabulary.token_text(BYTES.token_to_id("<|im_end|>")) == "<|im_end|>"
    assert vocabulary.token_bytes(10**6) == b""


def cut(text: str, stops: list[str], sizes: list[int], *, keep: bool = False) -> tuple[str, str | None]:
    machine, out, at = Stops(stops, keep=keep), "", 0
    for size in [*sizes, len(text)]:
        piece = machine.push(text[at : at + size])
        at += size
        out += piece.text
        if piece.stop is not None:
            return out, piece.stop
        assert not any(stop and stop in out for stop in stops)
    return out + machine.flush(), None


@settings(max_examples=120, deadline=None)
@given(text=st.text("abc", max_size=30), stop=st.text("abc", min_size=1, max_size=5), sizes=cuts)
def test_one_stop_string_cuts_where_find_finds_it(text: str, stop: str, sizes: list[int]) -> None:
    at = text.find(stop)
    assert cut(text, [stop], sizes) == ((text, None) if at < 0 else (text[:at], stop))
    assert cut(text, [stop], sizes, keep=True)[0] == (text if at < 0 else text[: at + len(stop)])


@settings(max_examples=120, deadline=None)
@given(text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), sizes=cuts)
def test_several_stop_strings_do_not_depend_on_the_pieces(text: str, stops: list[str], sizes: list[int]) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert cut(text, stops, sizes)[0] == (text[: min(ends)[1]] if ends else text)


def test_what_cannot_begin_a_stop_string_goes_out_at_once() -> None:
    machine = Stops(["END"])
    assert machine.push("hello E").text == "hello "
    assert machine.push("x").text == "Ex"


@pytest.mark.parametrize("stops", [[], [""]])
def test_no_stop_strings(stops: list[str]) -> None:
    assert cut("abc", stops, [1]) == ("abc", None)
