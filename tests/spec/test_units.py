"""Quantities in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.spec.units import format_duration, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        ("16 GiB", "B", 2**34),
        ("16GB", "B", 16e9),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("10 min", "s", 600),
        ("1.5e3 ms", "s", 1.5),
        ("450 GB/s", "B/s", 450e9),
        ("5", "B", None),
    ],
)
def test_parse(text, base, value):
    if value is None:
        with pytest.raises(ValueError, match="not a quantity"):
            parse_quantity(text, base)
    else:
        assert parse_quantity(text, base) == pytest.approx(value)


@given(st.floats(1e-3, 1e17), st.sampled_from(["B", "B/s", "FLOP/s", "W"]))
def test_what_is_formatted_is_read_back(value, base):
    assert parse_quantity(format_quantity(value, base), base) == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12.3 ms"), (5.5, "5.5 s"), (60, "1 min"), (3725, "1 h 2 min"), (90061, "1 d 1 h")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text
