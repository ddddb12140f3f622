"""The pages of the cache: who holds them, and what is known to stand in those that nobody holds.

A full page is known by a hash of its tokens and of all before them (and of the request's salt), so that equal prefixes share
pages. A page that nobody holds keeps its contents until it is taken again, the one let go first first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from colossus.nn.paged import NULL_PAGE, PAGE_TOKENS

_KEY_BYTES = 16  # 128 bits: nobody finds two prefixes with one key, by chance or by will
_SALTED = bytes(_KEY_BYTES + 1)  # before a salt, which is then longer than any key: who chooses salts cannot choose one that is a key


def extend_keys(keys: list[bytes], tokens: np.ndarray, salt: str) -> None:
    """Appends the keys of the full pages of ``tokens`` (int32) that ``keys`` does not have yet."""
    for page in range(len(keys), len(tokens) // PAGE_TOKENS):
        before = keys[-1] if keys else _SALTED + salt.encode()
        own = tokens[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS].tobytes()
        keys.append(blake2b(own, digest_size=_KEY_BYTES, key=blake2b(before, digest_size=_KEY_BYTES).digest()).digest())


class PagePool:
    """Pages ``1 .. num_pages - 1``; page 0 is nobody's."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages - 1
        self._holders = [0] * num_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(NULL_PAGE + 1, num_pages))  # the first is taken first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._num_kept = 0  # free pages with a key

    @property
    def num_free(self) -> int:
        """Pages that nobody holds, whether anything is known to stand in them or not."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    @property
    def num_cached(self) -> int:
        """Free pages whose contents can still be shared."""
        return self._num_kept

    def take(self, num: int) -> list[int]:
        """Pages with nothing known in them, each held once. Ask ``num_free`` first."""
        pages = []
        for _ in range(num):
            page, _none = self._free.popitem(last=False)
            self._forget(page)
            self._holders[page] = 1
            pages.append(page)
        return pages

    def count_known(self, keys: Sequence[bytes]) -> int:
        """Of these keys in order, how many pages are known before the first that is not."""
        return next((place for place, key in enumerate(keys) if key not in self._page_of), len(keys))

    def count_known_free(self, keys: Sequence[bytes]) -> int:
        """Of the known ones, how many nobody holds: sharing them leaves that many fewer free."""
        pages = (self._page_of[key] for key in keys[: self.count_known(keys)])
        return sum(self._holders[page] == 0 for page in pages)

    def share(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of these keys, up to the first that is not known, held once more."""
        pages = [self._page_of[key] for key in keys[: self.count_known(keys)]]
        for page in pages:
            if self._holders[page] == 0:
                del self._free[page]
                self._num_kept -= 1
            self._holders[page] += 1
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """Held once less. Of pages let go together the last is taken again first: what begins a prefix outlives what ends it."""
        for page in reversed(list(pages)):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free[page] = None
                if page in self._key_of:
                    self._num_kept += 1
                else:
                    self._free.move_to_end(page, last=False)

    def remember(self, page: int, key: bytes) -> None:
        """A held page now stands full with what ``key`` says. Of two with one key the first is remembered."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def forget_all(self) -> None:
        """Nothing is known of any page; held ones stay held."""
        self._page_of.clear()
        self._key_of.clear()
        self._num_kept = 0

    def _forget(self, page: int) -> None:
        if (key := self._key_of.pop(page, None)) is not None:
            del self._page_of[key]
            self._num_kept -= 1
