"""The text side of a served model, for the door: conversations and texts to tokens, and tokens back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tokenizers import Tokenizer

from colossus.serve.api.errors import ApiError
from colossus.serve.defaults import DefaultSampling
from colossus.serve.detokenize import Vocabulary
from colossus.serve.templates import ChatTemplate, TemplateFault

Result = TypeVar("Result")

_LONG_CHARACTERS = 8_000  # about 5 ms of tokenizing: longer texts leave the event loop


class TextModel(Protocol):
    """What the API reads of a served model."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def tokenizer_json(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def bos(self) -> str | None: ...
    @property
    def eos(self) -> str | None: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def default_sampling(self) -> DefaultSampling: ...


class Text:
    """Templates, tokenizing and detokenizing of one model."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.vocabulary = Vocabulary(self.tokenizer)  # at the start: 0.3 s for 50,000 tokens, which no request should wait for
        special = {"bos_token": model.bos, "eos_token": model.eos}
        self.template = ChatTemplate(model.chat_template, special_tokens={name: token for name, token in special.items() if token is not None})

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokens of a text; the beginning-of-text token comes first where the model wants one and ``add_special_tokens`` asks for it."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        bos = self.model.bos_id
        if add_special_tokens and self.model.adds_bos and bos is not None and tokens[:1] != [bos]:
            return [bos, *tokens]
        return tokens

    def check_length(self, text: str, max_tokens: int, param: str) -> None:
        """Refuses a text that must have too many tokens without counting them: millions of characters take seconds to tokenize.

        A normalizer may join characters before they are counted, at most four of them.
        """
        longest = self.vocabulary.max_token_bytes
        joined = 1 if self.tokenizer.normalizer is None else 4
        if longest is not None and len(text) > max_tokens * longest * joined:
            words = f"{len(text)} characters are more than the {max_tokens} tokens that the model takes: shorten them"
            raise ApiError(words, param=param, code="context_length_exceeded")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, as its prompt is echoed: special tokens are written out, and a token writes the same wherever it stands."""
        detokenizer = self.vocabulary.detokenizer((), skip=())
        return detokenizer.push(tokens) + detokenizer.flush()

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Where each token begins in their text."""
        detokenizer, offsets, at = self.vocabulary.detokenizer((), skip=()), [], 0
        for token in tokens:
            offsets.append(at)
            at += len(detokenizer.push((token,)))
        return offsets

    def render(self, messages: list[dict[str, object]], /, **variables: object) -> str:
        """A conversation by the model's template; what the template refuses is the caller's fault."""
        try:
            return self.template.render(messages, **variables)
        except TemplateFault as error:
            raise ApiError(str(error), param="messages", code="invalid_messages") from None


async def off_loop(size: int, work: Callable[[], Result]) -> Result:
    """Does ``work`` on ``size`` characters or tokens: at once where it is short, else in a thread so that others are not kept waiting."""
    return work() if size < _LONG_CHARACTERS else await asyncio.to_thread(work)
