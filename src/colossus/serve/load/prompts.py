"""Prompts of exact token counts: random tokens where the server takes token ids, words that are one token each where it takes text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import aiohttp

from colossus.serve.load.server import Server, count_chat_tokens, gather_limited, tokenize
from colossus.serve.load.workload import Ask

_WORDS = """
the of and to in is it you that he was for on are with as his they be at one have this from or had by hot but some what there we can out other were
all your when up use word how said an each she which do their time if will way about many then them would write like so these her long make thing see
him two has look more day could go come did my sound no most number who over know water than call first people may down side been now find any new
work part take get place made live where after back little only round man year came show every good me give our under name very through just form much
great think say help low line before turn cause same mean differ move right boy old too does tell sentence set three want air well also play small end
put home read hand port
""".split()  # noqa: SIM905 - a list of them would be as many lines


@dataclass(frozen=True)
class Prompts:
    """Makes the prompt of an ask, the same for the same seed.

    :param pool: token ids, or words where ``as_text``.
    :param extra_tokens: what the server adds around a text, such as a chat template.
    """

    pool: Sequence[int] | Sequence[str]
    seed: int
    as_text: bool
    extra_tokens: int = 0
    exact: bool = True

    def of(self, ask: Ask) -> list[int] | str:
        """Token ids or text."""
        wanted = max(1, ask.prompt_tokens - self.extra_tokens)
        parts = [piece for block in ask.blocks for piece in self._piece(f"block {block}", ask.block_tokens)][:wanted]
        if not parts and ask.shared_tokens:
            parts = list(self._piece("shared", ask.shared_tokens))[:wanted]
        parts += self._piece(f"own {ask.number}", wanted - len(parts))
        return " ".join(map(str, parts)) if self.as_text else [int(part) for part in parts]

    def _piece(self, name: str, length: int) -> tuple[int | str, ...]:
        return _drawn(tuple(self.pool), f"{self.seed} {name}", length)


@lru_cache(maxsize=512)
def _drawn(pool: tuple[int | str, ...], seed: str, length: int) -> tuple[int | str, ...]:
    return tuple(random.Random(seed).choices(pool, k=max(0, length)))


async def make_prompts(session: aiohttp.ClientSession, server: Server, *, chat: bool, seed: int) -> Prompts:
    """Asks the server's tokenizer which tokens and words there are; without one, texts of about so many tokens."""
    if not chat:
        tokens = await tokenize(session, server, " ".join(_WORDS))
        if tokens:
            return Prompts(pool=tuple(sorted(set(tokens))), seed=seed, as_text=False)
        return Prompts(pool=tuple(_WORDS), seed=seed, as_text=True, exact=False)
    found = await gather_limited([tokenize(session, server, " " + word) for word in _WORDS])
    single = tuple(word for word, tokens in zip(_WORDS, found, strict=True) if tokens is not None and len(tokens) == 1)
    if len(single) < 8:
        return Prompts(pool=tuple(_WORDS), seed=seed, as_text=True, exact=False)
    num_words = 16
    messages = chat_messages(" ".join(single[number % len(single)] for number in range(num_words)))
    count = await count_chat_tokens(session, server, messages)
    return Prompts(pool=single, seed=seed, as_text=True, extra_tokens=max(0, (count or num_words) - num_words), exact=count is not None)


def chat_messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
