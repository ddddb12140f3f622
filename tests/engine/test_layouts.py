"""Real worker processes in every layout give the loss curve of one process, within float32's rounding."""

import numpy as np
import pytest

from tests.engine.driving import losses, run

pytestmark = pytest.mark.slow

JOB = """
name = "layout"
num_steps = 8
data = {{ sources = ["{text}"], vocab_size = 300 }}
batch = {{ num_sequences = 8, sequence_tokens = 16 }}
optimizer = {{ warmup_steps = 2, learning_rate = 1e-2 }}
evaluation = {{ num_batches = 1 }}
checkpoint = {{ ram_interval_steps = 0, interval_steps = 1000 }}
recovery = {{ num_standbys = 0 }}
[model]
vocab_size = 304
num_layers = 2
model_dim = 32
num_heads = 4
num_kv_heads = 2
head_dim = 8
ffn_dim = 64
max_sequence_tokens = 64
"""
MOE = """[model.moe]
num_experts = 4
num_experts_per_token = 2
expert_dim = 32
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "corpus.txt").write_text("To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 300)
    for name, more in (("dense", ""), ("moe", MOE)):
        (folder / f"{name}.toml").write_text(JOB.format(text=folder / "corpus.txt") + more)
    return folder


def curve(folder, kind, name, workers, *sets):
    arguments = [part for assignment in (f"name={name}", *sets) for part in ("--set", assignment)]
    run("train", folder / f"{kind}.toml", "--workers", workers, *arguments, runs=folder / "runs")
    found = losses(folder / "runs" / f"{name}-1")
    return [found[step] for step in range(1, 9)]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_layouts_over_real_processes(job, kind):
    alone = curve(job, kind, f"{kind}-one", 1)
    assert alone[-1] < alone[0]
    layouts = {
        "fsdp2": (2, "layout.fsdp=2"),
        "tp2": (2, "layout.tp=2"),
        "dp2tp2": (4, "layout.dp=2", "layout.tp=2"),
        "fsdp2tp2-accumulate": (4, "layout.fsdp=2", "layout.tp=2", "layout.remat=full", "batch.num_microbatches=2"),
    }
    for name, (workers, *sets) in layouts.items():
        if kind == "moe" and workers == 4:
            continue  # fake devices cover them (tests/nn); and microbatches change the load-balance loss, a mean over one
        np.testing.assert_allclose(curve(job, kind, f"{kind}-{name}", workers, *sets), alone, rtol=2e-4, err_msg=name)
