"""The page pool counts exactly: no page twice, none lost, and what is shared is what was written."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from colossus.nn.paged import PAGE_TOKENS
from colossus.serve.blocks import PagePool, extend_keys

NUM_PAGES = 12


def keys_of(tokens: list[int], salt: str = "") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, np.asarray(tokens, np.int32), salt)
    return keys


def test_a_key_tells_its_page_all_before_it_and_the_salt() -> None:
    tokens = list(range(3 * PAGE_TOKENS + 5))
    keys = keys_of(tokens)
    assert len(keys) == 3 == len(set(keys))
    assert keys_of(tokens[: 2 * PAGE_TOKENS]) == keys[:2]
    other = keys_of([99, *tokens[1:]])
    assert not set(other) & set(keys)
    assert not set(keys_of(tokens, "salt")) & set(keys)
    grown = keys[:1]
    extend_keys(grown, np.asarray(tokens, np.int32), "")
    assert grown == keys


def test_no_salt_is_a_key() -> None:
    """Else who chooses salts could put pages of his own behind the prefixes of others."""
    own = list(range(PAGE_TOKENS))
    first = [18459] * PAGE_TOKENS  # whose key without anything before a salt was a text
    for salt in ("", *(key.decode("latin-1") for key in keys_of(first)), "ˣOӑ\ue8b1+\uf66b쫃6"):
        assert keys_of(own, salt)[0] != keys_of(first + own)[1]


def test_what_was_let_go_first_is_taken_first_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool, keys = PagePool(4 + 1), keys_of(list(range(4 * PAGE_TOKENS)))
    pages = pool.take(4)
    for page, key in zip(pages, keys, strict=True):
        pool.remember(page, key)
    pool.release(pages)
    assert (pool.num_free, pool.num_cached, pool.count_known(keys), pool.count_known_free(keys)) == (4, 4, 4, 4)
    assert pool.take(1) == [pages[3]]
    assert pool.share(keys) == pages[:3]
    assert pool.num_used == 4


def test_pages_without_known_contents_go_before_those_with() -> None:
    pool, keys = PagePool(3 + 1), keys_of(list(range(PAGE_TOKENS)))
    known, *others = pool.take(3)
    pool.remember(known, keys[0])
    pool.release([known])
    pool.release(others)
    assert set(pool.take(2)) == set(others)
    assert pool.share(keys) == [known]


class Pool(RuleBasedStateMachine):
    """Requests take, share, fill, and let go in any order; a model of what stands in each page goes along."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.held: list[list[int]] = []
        self.contents: dict[int, bytes] = {}  # what was written last

    @rule(num=st.integers(0, 4))
    def take(self, num: int) -> None:
        if num <= self.pool.num_free:
            pages = self.pool.take(num)
            assert len(set(pages)) == num and 0 not in pages
            assert not set(pages) & {page for held in self.held for page in held}
            for page in pages:
                self.contents.pop(page, None)
            self.held.append(pages)

    @rule(data=st.data(), text=st.integers(0, 2))
    def fill(self, data: Any, text: int) -> None:
        """The pages of one holder are known from now on."""
        if self.held:
            pages = data.draw(st.sampled_from(self.held))
            for page, key in zip(pages, keys_of([text] * PAGE_TOKENS * len(pages)), strict=True):
                if page not in self.contents:
                    self.contents[page] = key
                    self.pool.remember(page, key)

    @rule(text=st.integers(0, 2), num=st.integers(0, 4))
    def share(self, text: int, num: int) -> None:
        keys = keys_of([text] * PAGE_TOKENS * num)
        free, needed = self.pool.num_free, self.pool.count_known_free(keys)
        pages = self.pool.share(keys)
        assert len(pages) == self.pool.count_known(keys)
        assert [self.contents[page] for page in pages] == keys[: len(pages)]
        assert self.pool.num_free == free - needed
        self.held.append(pages)

    @rule(data=st.data())
    def release(self, data: Any) -> None:
        if self.held:
            self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def forget(self) -> None:
        self.pool.forget_all()
        assert self.pool.num_cached == 0
        assert self.pool.count_known(keys_of([0] * PAGE_TOKENS)) == 0

    @invariant()
    def counts(self) -> None:
        held = [page for pages in self.held for page in pages]
        assert self.pool.num_used == len(set(held))
        assert self.pool.num_used + self.pool.num_free == NUM_PAGES - 1
        assert 0 <= self.pool.num_cached <= self.pool.num_free
        assert all(self.pool._holders[page] == held.count(page) for page in range(NUM_PAGES))

    def teardown(self) -> None:
        for pages in self.held:
            self.pool.release(pages)
        assert self.pool.num_used == 0


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
