"""The tokenizer of a GGUF file as a ``tokenizers.Tokenizer``: byte-level BPE ("gpt2") or SentencePiece BPE ("llama").

A file gives tokens, their kinds and merges (or scores), and names the rule that cuts text into words; the rules themselves stand
here, as the models' own tokenizer.json files have them (their names and grouping: llama.cpp, ``tokenizer.ggml.pre``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from colossus.nn.gguf_file import GgufFile
from colossus.nn.tokenizer_files import ENDS
from colossus.spec.errors import DataError, nearest

_PREFIX = "tokenizer.ggml."
_SPACE = "▁"  # SentencePiece's
# Tokens of ours and of llama.cpp's list that end a turn or a text, whatever the file's eos is.
_TURN_ENDS = ("<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|return|>", "<|end▁of▁sentence|>")

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CL100K = r"(?i:%s)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Kind(IntEnum):
    """What a token is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class _Cutting:
    """How text is cut into words before merging: each pattern cuts what those before it left whole."""

    patterns: tuple[str, ...]
    normalizer: Callable[[], Any] | None = None
    whole_words: bool = False  # a word that is a token is taken as it is, whatever its merges
    adds_bos: bool = False


_LLAMA3 = _Cutting(patterns=(_CL100K % (_CONTRACTIONS, r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_QWEN2 = _Cutting(patterns=(_CL100K % (_CONTRACTIONS, r"\p{N}"),), normalizer=normalizers.NFC)
_CUTTINGS = {
    "default": _Cutting(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _Cutting(patterns=(_GPT2,)),
    "smollm": _Cutting(patterns=(r"\p{N}", _GPT2)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _Cutting(patterns=(_TEKKEN,), whole_words=True, adds_bos=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
}


@dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """What a file says of its tokens beside the merges."""

    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    adds_bos: bool
    chat_template: str | None
    tokens: Sequence[str]

    def text_of(self, token: int | None) -> str | None:
        return None if token is None else self.tokens[token]


def read_vocabulary(file: GgufFile) -> GgufVocabulary:
    """Special tokens and template; DataError for an id that the vocabulary does not have."""
    tokens, kinds = _tokens(file), _kinds(file)
    special = {name: _special(file, name, len(tokens)) for name in ("bos", "eos", "eot", "eom")}
    control = {tokens[index]: int(index) for index in np.flatnonzero((kinds == Kind.CONTROL) | (kinds == Kind.USER_DEFINED))}
    spelled = {control[text] for text in (*ENDS, *_TURN_ENDS) if text in control}
    ends = {special[name] for name in ("eos", "eot", "eom")} | spelled
    template = file.metadata.get("tokenizer.chat_template")
    adds_bos = file.metadata.get(_PREFIX + "add_bos_token", _is_sentencepiece(file) or _cutting(file).adds_bos)
    return GgufVocabulary(
        bos_id=special["bos"],
        eos_id=special["eos"],
        end_ids=frozenset(token for token in ends if token is not None),
        adds_bos=bool(adds_bos) and special["bos"] is not None,
        chat_template=template if isinstance(template, str) else None,
        tokens=tokens,
    )


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer; with ``add_special_tokens`` it begins a text as the file says."""
    tokenizer = _sentencepiece(file) if _is_sentencepiece(file) else _byte_level(file)
    vocabulary, kinds = read_vocabulary(file), _kinds(file)
    of_kind = lambda kind: [vocabulary.tokens[index] for index in np.flatnonzero(kinds == kind).tolist()]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in of_kind(Kind.CONTROL)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in of_kind(Kind.USER_DEFINED)])
    if vocabulary.adds_bos:
        bos = str(vocabulary.text_of(vocabulary.bos_id))
        begin = processors.TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, vocabulary.bos_id)])
        byte_level = [] if _is_sentencepiece(file) else [processors.ByteLevel(trim_offsets=False)]
        tokenizer.post_processor = processors.Sequence([*byte_level, begin])
    return tokenizer


def _byte_level(file: GgufFile) -> Tokenizer:
    cutting = _cutting(file)
    tokens, merges = _tokens(file), _merges(file)
    ids = {token: index for index, token in enumerate(tokens)}
    model = _model(file, vocab=ids, merges=merges, ignore_merges=cutting.whole_words, fuse_unk=False)
    tokenizer = Tokenizer(model)
    if cutting.normalizer is not None:
        tokenizer.normalizer = cutting.normalizer()
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cutting.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile) -> Tokenizer:
    """Pairs are merged by the score of what they become; bytes stand in for characters that the vocabulary lacks."""
    tokens = _tokens(file)
    scores = file.metadata.get(_PREFIX + "scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise DataError(f"{file.path}: {_PREFIX}scores must hold a number for each of {len(tokens)} tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    unknown = next((tokens[index] for index in np.flatnonzero(_kinds(file) == Kind.UNKNOWN)), None)
    merges = _merges(file) if _PREFIX + "merges" in file.metadata else _merges_by_score(ids, scores)
    tokenizer = Tokenizer(_model(file, vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    begins_with_space = file.metadata.get(_PREFIX + "add_space_prefix", True)
    before = [normalizers.Prepend(_SPACE)] if begins_with_space else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if begins_with_space else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    return tokenizer


def _merges_by_score(ids: Mapping[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best token first, and of one token by the ids of its parts."""
    found = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-float(scores[index]), index, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _model(file: GgufFile, **parts: Any) -> models.BPE:
    try:
        return models.BPE(**parts)
    except Exception as error:  # noqa: BLE001  (tokenizers raises Exception itself)
        raise DataError(f"{file.path}: its vocabulary and merges make no tokenizer: {error}") from None


def _is_sentencepiece(file: GgufFile) -> bool:
    kind = file.metadata.get(_PREFIX + "model", "(absent)")
    if kind not in ("gpt2", "llama"):
        raise DataError(f"{file.path}: {_PREFIX}model = {kind} is not a tokenizer that Colossus reads", hint="valid: gpt2, llama")
    return bool(kind == "llama")


def _cutting(file: GgufFile) -> _Cutting:
    name = str(file.metadata.get(_PREFIX + "pre", "default"))
    if name not in _CUTTINGS:
        raise DataError(f"{file.path}: {_PREFIX}pre = {name} is not a rule that Colossus knows", hint=nearest(name, _CUTTINGS))
    return _CUTTINGS[name]


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.metadata.get(_PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise DataError(f"{file.path} has no {_PREFIX}tokens", hint="a GGUF file of weights alone cannot be served; convert the model with its vocabulary")
    return tokens


def _kinds(file: GgufFile) -> np.ndarray:
    count = len(_tokens(file))
    kinds = file.metadata.get(_PREFIX + "token_type")
    if kinds is None:
        return np.full(count, Kind.NORMAL)
    if not isinstance(kinds, np.ndarray) or len(kinds) != count:
        raise DataError(f"{file.path}: {_PREFIX}token_type must hold a number for each of {count} tokens")
    return kinds


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = file.metadata.get(_PREFIX + "merges")
    pairs = [tuple(merge.split(" ")) for merge in merges] if isinstance(merges, list) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{file.path}: {_PREFIX}merges must hold pairs of tokens parted by one space")
    return pairs


def _special(file: GgufFile, name: str, count: int) -> int | None:
    token = file.metadata.get(f"{_PREFIX}{name}_token_id")
    if token is None:
        return None
    if not isinstance(token, int) or not 0 <= token < count:
        raise DataError(f"{file.path}: {_PREFIX}{name}_token_id = {token} is no token of a vocabulary of {count}")
    return token
