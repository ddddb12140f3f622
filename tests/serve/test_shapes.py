"""There is a program for every step that can be planned, and few programs in all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.serve.shapes import Key, Kind, Shapes


@st.composite
def shapes(draw: Any) -> Shapes:
    rows = draw(st.integers(1, 256))
    return Shapes(
        max_rows=rows,
        max_tokens=draw(st.integers(rows, 2048)),
        max_pages=draw(st.integers(1, 600)),
        num_drafts=draw(st.integers(0, 4)),
        ragged=draw(st.booleans()),
    )


@given(shapes(), st.data())
def test_every_step_has_a_program(of: Shapes, data: Any) -> None:
    rows = data.draw(st.integers(1, of.max_rows))
    pages = data.draw(st.integers(1, of.max_pages))
    kind = data.draw(st.sampled_from([kind for kind in Kind if kind is not Kind.VERIFY or of.num_drafts]))
    decodes = kind <= Kind.EDITED and data.draw(st.booleans())
    most = min(of.max_tokens, 128) if kind is Kind.SCORE else of.max_tokens
    tokens = rows if decodes else data.draw(st.integers(min(rows, most), most))
    key = of.fitting(kind, num_tokens=tokens, num_rows=min(rows, tokens), num_pages=pages, decodes=decodes)
    assert key.kind is kind and key.decodes == decodes
    assert key.num_tokens >= tokens and key.num_rows >= min(rows, tokens) and key.num_pages >= pages
    assert key in of.keys


@given(shapes())
def test_programs_are_few_and_take_what_is_legal(of: Shapes) -> None:
    assert len(of.keys) == len(set(of.keys)) <= 48
    for key in of.keys:
        assert key.decodes or key.num_tokens > key.num_rows  # as many tokens as rows means a step of decoding
        assert key.num_pages <= of.max_pages


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("tokens", [4, 9])
def test_the_inputs_lie_side_by_side(kind: Kind, tokens: int) -> None:
    layout = Key(kind, tokens, 4, 3, 2).layout
    ints, floats = np.zeros(layout.num_ints, np.int32), np.zeros(layout.num_floats, np.float32)
    parts = layout.unpack(ints, floats)
    for name in parts:
        parts[name] += 1
    assert (ints == 1).all() and (floats == 1).all()
