"""Quotas by a clock of the test's own; key files."""

from __future__ import annotations

import hashlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.serve.keys import Keys, new_key, read_keys
from colossus.serve.limits import Bucket, LimitError, Limits
from colossus.serve.settings import Quota
from colossus.spec.errors import SpecError


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def test_a_bucket_holds_a_minute_and_fills_evenly():
    clock = Clock()
    bucket = Bucket(60, clock)
    for _ in range(60):
        assert bucket.wait_s() == 0
        bucket.take(1)
    assert bucket.wait_s() == pytest.approx(1)
    clock.now_s += 0.25
    assert bucket.wait_s() == pytest.approx(0.75)
    clock.now_s += 1000
    bucket.take(120)  # in debt
    assert bucket.wait_s() == pytest.approx(61)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50)), max_size=60), st.floats(1, 600))
def test_no_more_than_the_rate_and_one_minute_ever_pass(events, per_minute):
    clock, taken = Clock(), 0
    bucket = Bucket(per_minute, clock)
    begin = clock.now_s
    for pause_s, _ in events:
        clock.now_s += pause_s
        if bucket.wait_s() == 0:
            bucket.take(1)
            taken += 1
    assert taken <= max(1, per_minute) + (clock.now_s - begin) * per_minute / 60 + 1e-6


def test_an_owners_requests_tokens_and_concurrency():
    clock = Clock()
    limits = Limits(Quota(requests_per_minute=2, tokens_per_minute=600, num_concurrent=1), clock)
    ann, bob = limits.of("ann"), limits.of("bob")
    ann.enter()
    with pytest.raises(LimitError, match="under way"):
        ann.enter()
    bob.enter()
    ann.leave()
    ann.enter()
    ann.leave()
    with pytest.raises(LimitError, match="2 requests per minute") as caught:
        ann.enter()
    assert caught.value.retry_after_s == pytest.approx(30)
    clock.now_s += 60
    ann.spend(700)
    with pytest.raises(LimitError, match="600 tokens per minute") as caught:
        ann.enter()
    assert caught.value.retry_after_s == pytest.approx(10.1)
    assert limits.of("ann") is ann and ann.num_running == 0


def test_a_new_keys_file_holds_only_hashes(tmp_path):
    file = tmp_path / "keys.txt"
    key, other = new_key("ann", file), new_key("bob.b@x", file)
    assert key.startswith("sk-colossus-") and key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_keys(file)[0] == ("ann", hashlib.sha256(key.encode()).hexdigest())
    keys = Keys(file)
    assert (keys.owner(key), keys.owner(other), keys.owner(key + "x"), keys.owner(""), keys.owner("\udcff")) == ("ann", "bob.b@x", None, None, None)
    for name in ("ann", "", "two words", "ü", "x" * 65):
        with pytest.raises(SpecError):
            new_key(name, file)


def test_a_broken_key_file_tells_every_problem_and_shows_no_key(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n\nann {'0' * 64}\nbob sk-colossus-secret\nann {'1' * 64}\nalone\n")
    with pytest.raises(SpecError) as caught:
        read_keys(file)
    assert len(caught.value.problems) == 3 and "secret" not in str(caught.value)
    with pytest.raises(SpecError, match="No such file"):
        read_keys(tmp_path / "absent")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="no text"):
        read_keys(file)
    file.write_text("# nobody yet\n")
    with pytest.raises(SpecError, match=r"has no key.*--new-key NAME"):
        Keys(file)
