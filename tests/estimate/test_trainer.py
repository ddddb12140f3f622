"""The closed form of the trainer's messages: its laws, and its blocks against the real attention's."""

from __future__ import annotations

import pytest

from colossus.catalog.models import load_model
from colossus.estimate import trainer
from colossus.estimate.trainer import block_keys, step_traffic
from colossus.spec.job import Precision
from colossus.spec.layout import Layout, Remat

CARD = load_model("llama-3-8b")


def traffic(layout, precision=Precision.BFLOAT16):
    return step_traffic(CARD, layout, 64, 4096, precision)


@pytest.mark.parametrize(("num_tokens", "window"), [(100, None), (256, None), (5000, None), (8192, None), (8192, 1024)])
def test_blocks_are_the_attentions_own(num_tokens, window):
    from colossus.nn import attention

    assert (trainer.MAX_BLOCKS, trainer.MIN_BLOCK) == (attention.MAX_BLOCKS, attention.MIN_BLOCK)
    assert block_keys(num_tokens, window) == attention.attended_keys(num_tokens, window=window)


def test_an_axis_of_one_carries_nothing():
    assert traffic(Layout()) == {}
    assert set(traffic(Layout(fsdp=8))) == {"fsdp"}
    assert set(traffic(Layout(dp=2, fsdp=2, tp=2))) == {"dp", "fsdp", "tp", "dp+fsdp"}


def test_weights_are_gathered_twice_and_gradients_scattered_once():
    """3 x 2 bytes of each weight, but embedding and head are gathered once, and the head's gradient is float32."""
    table = CARD.vocab_size * CARD.model_dim
    layers = 8_030_261_248 - 2 * table
    rows = 64 * 4096 / 8 * CARD.model_dim
    assert traffic(Layout(fsdp=8, remat=Remat.FULL))["fsdp"] == pytest.approx(6 * layers + (2 + 2 + 4) * table + 2 * rows, rel=1e-6)
    assert traffic(Layout(dp=8)) == {"dp": pytest.approx(2 * layers + (2 + 4) * table, rel=1e-6)}


def test_remat_sends_more_and_microbatches_send_weights_again():
    assert traffic(Layout(tp=8, remat=Remat.FULL))["tp"] > traffic(Layout(tp=8, remat=Remat.SELECTIVE))["tp"] > traffic(Layout(tp=8))["tp"]
    assert traffic(Layout(fsdp=8, tp=2, num_microbatches=4))["fsdp"] == 4 * traffic(Layout(fsdp=8, tp=2))["fsdp"]
    assert traffic(Layout(tp=8, num_microbatches=4)) == traffic(Layout(tp=8))
