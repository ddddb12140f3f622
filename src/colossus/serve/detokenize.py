"""Tokens to text, token by token: what each one writes, characters split over several, and stop strings cut out to the letter."""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer(Protocol):
    """The text of one answer as its tokens come. What it has given out, together, is the text of all tokens."""

    def push(self, tokens: Iterable[int]) -> str:
        """What is certain to follow in the text after these tokens; part of a character waits for its rest."""
        ...

    def flush(self) -> str:
        """What still waited, at the end: half a character is written as U+FFFD."""
        ...


class Vocabulary:
    """What each token of a tokenizer writes, looked up once for all.

    Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece BPE with byte fallback (Llama 2, Mistral, Gemma) write the same
    bytes wherever a token stands, so a table of bytes is exact and a token costs a look-up. For other decoders (WordPiece, CTC),
    where neighbours matter, ``tokenizers`` decodes a moving window.

    An answer goes on where its prompt ended: a leading space that ``Tokenizer.decode`` strips from a text's start is kept.

    :ivar special: ids of special tokens, which are no part of a text for people.
    :ivar max_token_bytes: the most that one token writes; None where neighbours matter.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(index for index, token in added.items() if token.special)
        self._added = {index: token.content for index, token in added.items()}
        self._table = _byte_table(tokenizer, self._added)
        self.max_token_bytes = max(map(len, self._table), default=1) if self._table is not None else None

    def detokenizer(self, prompt: Sequence[int], *, skip: Collection[int]) -> Detokenizer:
        """For an answer to ``prompt``; tokens in ``skip`` write nothing."""
        if self._table is not None:
            return _Bytes(self._table, skip)
        return _Window(self.tokenizer, prompt, skip)

    def token_bytes(self, token: int) -> bytes:
        """What a token writes, looked at alone."""
        if self._table is not None:
            return self._table[token] if 0 <= token < len(self._table) else b""
        return self.tokenizer.decode([token], skip_special_tokens=False).encode()

    def token_text(self, token: int) -> str:
        """The same as text; bytes that are no characters become U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def id_of(self, text: str) -> int | None:
        """The one token spelled so, if there is."""
        return self.tokenizer.token_to_id(text)


class _Bytes:
    """Tokens that are bytes: UTF-8 is decoded incrementally."""

    def __init__(self, table: Sequence[bytes], skip: Collection[int]) -> None:
        self._table, self._skip = table, skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Iterable[int]) -> str:
        table, skip, size = self._table, self._skip, len(self._table)
        return self._decoder.decode(b"".join([table[token] for token in tokens if token < size and token not in skip]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Window:
    """Tokens whose text depends on their neighbours: the library decodes those that it needs again."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip: Collection[int]) -> None:
        self._tokenizer, self._skip = tokenizer, skip
        self._stream = DecodeStream(ids=list(prompt[-8:]), skip_special_tokens=False)
        self._waiting: list[int] = []

    def push(self, tokens: Iterable[int]) -> str:
        text = []
        for token in tokens:
            if token in self._skip:
                continue
            self._waiting.append(token)
            if (piece := self._stream.step(self._tokenizer, token)) is not None:
                text.append(piece)
                self._waiting.clear()
        return "".join(text)

    def flush(self) -> str:
        waiting, self._waiting = self._waiting, []
        return self._tokenizer.decode(waiting, skip_special_tokens=False) if waiting else ""


def _byte_table(tokenizer: Tokenizer, added: dict[int, str]) -> list[bytes] | None:
    """What each id writes, or None where that depends on its neighbours."""
    parts = _decoder_parts(tokenizer)
    kinds = {part["type"] for part in parts}
    if kinds == {"ByteLevel"}:
        write = _ByteLevel().write
    elif kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and all(map(_is_piecewise, parts)):
        write = _Pieces(parts).write
    else:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, index in vocabulary.items():
        table[index] = write(piece)
    if kinds != {"ByteLevel"}:
        for index, content in added.items():
            table[index] = content.encode()
    return table


def _decoder_parts(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokenizer's decoder as the list of its steps; empty where it has none."""
    if tokenizer.decoder is None:
        return []
    state = json.loads(tokenizer.decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def _is_piecewise(part: dict[str, Any]) -> bool:
    """Whether a step acts on each token alone (Strip acts on a text's start, which an answer has not)."""
    if part["type"] == "Replace":
        return "String" in part["pattern"]
    return part["type"] != "Strip" or part["stop"] == 0


class _ByteLevel:
    """GPT-2's spelling of bytes as printable characters (Radford et al. 2019): those that print stand for themselves, the rest follow from 256 on."""

    def __init__(self) -> None:
        printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in set(printing)]
        self._bytes = {chr(byte): byte for byte in printing} | {chr(256 + place): byte for place, byte in enumerate(others)}

    def write(self, piece: str) -> bytes:
        """A piece with a character outside the spelling stands for itself, as added tokens do."""
        try:
            return bytes([self._bytes[character] for character in piece])
        except KeyError:
            return piece.encode()


class _Pieces:
    """SentencePiece: a mark for the space, and ``<0x0A>`` for bytes that no piece spells."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        self._replaced = [(part["pattern"]["String"], part["content"]) for part in parts if part["type"] == "Replace"]
        self._replaced += [(part["replacement"], " ") for part in parts if part["type"] == "Metaspace"]
        self._falls_back = any(part["type"] == "ByteFallback" for part in parts)

    def write(self, piece: str) -> bytes:
        if self._falls_back and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes.fromhex(piece[3:5])
            except ValueError:
                pass
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()


@dataclass(frozen=True, slots=True)
class Cut:
    """What of a text may go out, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class Stops:
    """Ends a text at a stop string, however it is cut into pieces.

    The stop string whose last character comes first counts (the longest of those that end together), so the cut does not depend on the
    pieces. What might be the beginning of one is held back until it is clear.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._beginnings = {stop[:size] for stop in self._stops for size in range(1, len(stop))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._keep = keep
        self._held = ""

    def push(self, text: str) -> Cut:
        """What can go out now."""
        if not self._stops or not text:
            return Cut(text)
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, stop = min(found)
            self._held = ""
            return Cut(text[: end if self._keep else start], stop)
        keep = self._num_held(text)
        self._held = text[len(text) - keep :]
        return Cut(text[: len(text) - keep])

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Characters at the end with which some stop string begins."""
        return next((size for size in range(min(self._longest, len(text)), 0, -1) if text[-size:] in self._beginnings), 0)
