"""What the router believes to be in each engine's prefix cache: hashes of the first pages of the prompts that it sent there."""

from __future__ import annotations

from collections import OrderedDict

from colossus.serve.request import Request

_MAX_PAGES = 128  # of a prompt that are looked at
_MAX_KNOWN = 16_384  # pages remembered of one engine


def prefix_hashes(request: Request, page_tokens: int) -> tuple[int, ...]:
    """One chained hash for each whole page at the prompt's begin; requests with different salts share none."""
    chain, hashes = hash(request.cache_salt), []
    num_pages = min(len(request.prompt) // page_tokens, _MAX_PAGES)
    for start in range(0, num_pages * page_tokens, page_tokens):
        chain = hash((chain, request.prompt[start : start + page_tokens]))
        hashes.append(chain)
    return tuple(hashes)


class Known:
    """The pages of one engine, the longest unused forgotten first."""

    def __init__(self) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()

    def count(self, hashes: tuple[int, ...]) -> int:
        """Of these pages from the first on."""
        for number, page in enumerate(hashes):
            if page not in self._pages:
                return number
        return len(hashes)

    def remember(self, hashes: tuple[int, ...]) -> None:
        for page in hashes:
            self._pages[page] = None
            self._pages.move_to_end(page)
        while len(self._pages) > _MAX_KNOWN:
            self._pages.popitem(last=False)

    def forget(self) -> None:
        """The engine starts with an empty cache."""
        self._pages.clear()
