"""The real train step, compiled for machines that are not here, against the closed forms."""

from __future__ import annotations

import pytest

from colossus.cli.program import comparison, parse_layout
from colossus.engine.compiler import MAX_MADE_UP_DEVICES, compile_program
from colossus.estimate.program import read_program
from colossus.plan.program import fewer_copies, topology, torus
from colossus.spec.errors import EngineError, InfeasibleError, SpecError
from colossus.spec.job import Precision
from colossus.spec.layout import Layout, Remat
from colossus.spec.model import ModelCard
from colossus.spec.program import ProgramOrder

CARD = ModelCard(vocab_size=2048, num_layers=4, model_dim=512, num_heads=8, num_kv_heads=4, head_dim=64, ffn_dim=1536)


def order_of(layout, compiler="cpu", **changes):
    given = {"card": CARD, "layout": layout, "num_sequences": 16, "sequence_tokens": 1024, "precision": Precision.FLOAT32, "platform": "tpu"}
    return ProgramOrder(compiler=compiler, **(given | changes))


def deviations(order):
    """Of each figure: as compiled over the closed form, less one; and the reading."""
    made = compile_program(order, timeout_s=300)
    reading = read_program(made.text, order, made.account, made.errors)
    return {name: found / expected - 1 if expected else float("inf") for name, found, expected in comparison(order, reading)}, reading


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        Layout(fsdp=8, remat=Remat.FULL),
        Layout(tp=4, fsdp=2, remat=Remat.SELECTIVE),
        Layout(dp=2, fsdp=2, tp=2, remat=Remat.FULL),
        Layout(dp=2, fsdp=4, remat=Remat.FULL, num_microbatches=2),
        Layout(dp=8, remat=Remat.SELECTIVE),
    ],
    ids=Layout.describe,
)
def test_the_cpus_program_does_what_the_closed_forms_say(layout):
    off, reading = deviations(order_of(layout))
    assert abs(off["FLOP"]) < 0.01
    assert abs(off["peak memory"]) < 0.10
    assert {name: share for name, share in off.items() if name.startswith("bytes") and abs(share) > 0.05} == {}


def test_a_compiler_that_takes_too_long_is_ended():
    with pytest.raises(EngineError, match="did not finish in 1 s"):
        compile_program(order_of(Layout(fsdp=8)), timeout_s=1)


@pytest.mark.slow
def test_a_compiler_that_dies_leaves_its_last_words():
    with pytest.raises(EngineError, match="ended with exit code 1: .*layout.tp = 3"):
        compile_program(order_of(Layout(tp=3)), timeout_s=100)


def test_more_devices_than_can_be_made_up_take_fewer_copies():
    assert fewer_copies(Layout(dp=128, fsdp=128, tp=8), MAX_MADE_UP_DEVICES) == Layout(dp=2, fsdp=128, tp=8)
    assert fewer_copies(Layout(dp=1, fsdp=64, tp=8), MAX_MADE_UP_DEVICES).num_devices == 512
    with pytest.raises(InfeasibleError, match="at most 2048 devices"):
        fewer_copies(Layout(fsdp=1024, tp=8), MAX_MADE_UP_DEVICES)


@pytest.mark.parametrize(
    ("chip", "per_node", "num_devices", "name"),
    [
        ("h100-sxm", 8, 16384, "1x2048x8"),
        ("h100-sxm", 8, 4, "1x1x4"),
        ("tpu-v5p", 4, 512, "v5p:8x8x8"),
        ("tpu-v5e", 8, 128, "v5e:8x16"),
        ("tpu-v7", 4, 64, "tpu7x:4x4x4"),
    ],
)
def test_machines_as_compilers_name_them(chip, per_node, num_devices, name):
    assert topology(chip, per_node, num_devices) == name
    assert torus(48, 3) == (4, 3, 4) or sorted(torus(48, 3)) == [3, 4, 4]


@pytest.mark.parametrize("text", ["dp", "dp=2,pp=4", "fsdp=0", "remat=some"])
def test_a_layout_that_is_none_is_refused(text):
    with pytest.raises(SpecError, match=r"--read-layout"):
        parse_layout(text)
    assert parse_layout("dp=2,fsdp=4,remat=full") == Layout(dp=2, fsdp=4, remat=Remat.FULL)
