"""The plan: what is chosen, what is respected, and how a job that cannot run is told so."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.catalog.chips import load_chip
from colossus.catalog.models import load_model
from colossus.plan import plan_layout, smaller_layouts
from colossus.spec.job import TrainJob
from colossus.spec.layout import Remat
from colossus.spec.machine import Chip, Machine, Node
from colossus.spec.model import ModelCard
from colossus.spec.plan import Infeasible, Plan

CARD = ModelCard(vocab_size=512, num_layers=4, model_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=192)


def cpus(cores: int = 2, memory_gib: float = 16) -> Machine:
    return Machine(name="test", node=Node(chip=Chip(name="cpu", kind="cpu"), num_chips=1, num_cores=cores, memory_bytes=int(memory_gib * 2**30)))


def gpus(chips: int = 8) -> Machine:
    return Machine(name="test", node=Node(chip=load_chip("h100-sxm"), num_chips=chips, num_cores=64, memory_bytes=2**40))


def job(card: ModelCard = CARD, **tables) -> TrainJob:
    data = {"name": "test", "num_steps": 100, "model": card.to_data(), "data": {"sources": ["x"]}, "batch": {"num_sequences": 16, "sequence_tokens": 128}}
    return TrainJob.from_data(data | tables, origin="test")


def plan(job_: TrainJob, machine: Machine, card: ModelCard | None = CARD) -> Plan:
    found = plan_layout(job_, machine, card)
    assert isinstance(found, Plan), found
    return found


def refusal(job_: TrainJob, machine: Machine, card: ModelCard | None = CARD) -> Infeasible:
    found = plan_layout(job_, machine, card)
    assert isinstance(found, Infeasible), found
    return found


def test_one_process_per_core_and_plain_data_parallelism():
    found = plan(job(), cpus(2))
    assert (found.num_workers, found.layout.axis_sizes, found.layout.remat) == (2, (2, 1, 1), Remat.NONE)
    assert found.num_parameters and found.model_flop_per_token and found.memory_per_device


def test_fewer_workers_where_the_cores_do_not_divide_the_batch():
    found = plan(job(), cpus(3))
    assert found.num_workers == 2 and any("2 of 3" in note for note in found.notes)


def test_what_the_user_fixed_is_respected():
    assert plan(job(layout={"fsdp": 2}), cpus(2)).layout.axis_sizes == (1, 2, 1)
    assert plan(job(layout={"tp": 2, "remat": "full"}), cpus(4)).layout.axis_sizes == (2, 1, 2)
    assert plan(job(layout={"tp": 2, "remat": "full"}), cpus(4)).layout.remat is Remat.FULL
    assert plan(job(num_workers=4), cpus(2)).num_workers == 4
    assert plan(job(layout={"dp": 1, "fsdp": 1, "tp": 1}), cpus(8)).num_workers == 1
    assert plan(job(layout={"dp": 4}, num_workers=4), cpus(2)).layout.dp == 4


def test_memory_decides_between_dp_fsdp_and_remat():
    card = load_model("llama-3-8b")
    asked = job(card, batch={"num_sequences": 8, "sequence_tokens": 4096}, precision="bfloat16")
    found = plan(asked, gpus(8), card)
    assert found.num_workers == 1 and found.layout.fsdp > 1 and found.layout.tp == 1
    assert found.memory_per_device and found.memory_per_device.total_bytes < 80e9


def test_llama_1b_fits_one_gpu_only_with_recomputing():
    card = load_model("llama-3.2-1b")
    asked = job(card, batch={"num_sequences": 16, "sequence_tokens": 4096}, precision="bfloat16")
    assert plan(asked, gpus(1), card).layout.remat is not Remat.NONE


def test_workers_that_do_not_divide_the_batch_are_refused_with_ones_that_do():
    found = refusal(job(num_workers=3), cpus(4))
    assert "batch.num_sequences = 16" in found.reason and "3" in found.reason
    assert found.fit == "--workers 2 or --workers 4"


def test_axes_that_contradict_the_workers_are_refused():
    found = refusal(job(layout={"fsdp": 4}, num_workers=2), cpus(2))
    assert "fsdp 4" in found.reason and "num_workers = 2" in found.reason and "--workers 4" in str(found.fit)
    assert "16" in refusal(job(layout={"dp": 16}), cpus(2)).reason


def test_heads_that_tp_does_not_divide_are_named():
    found = refusal(job(layout={"tp": 3}, num_workers=3), cpus(3))
    assert "layout.tp = 3" in found.reason and "num_heads 4" in found.reason


def test_too_little_memory_is_said_with_what_would_fit():
    card, machine, batch = load_model("llama-91m"), cpus(2, memory_gib=14), {"num_sequences": 16, "sequence_tokens": 512}
    found = refusal(job(card, batch=batch, layout={"remat": "none"}, num_workers=2), machine, card)
    assert "GiB" in found.reason and "even as" in found.reason
    assert "--set layout.remat=full" in str(found.fit)
    microbatches = int(str(found.fit).split("--set batch.num_microbatches=")[1].split(";")[0])
    sequences = int(str(found.fit).split("--set batch.num_sequences=")[1].split(";")[0])
    for eased in ({"num_microbatches": microbatches}, {"num_sequences": sequences}):
        assert plan(job(card, batch=batch | eased, layout={"remat": "none"}, num_workers=2), machine, card)


def test_a_model_far_too_large_names_how_many_layers_would_fit():
    card = load_model("llama-3.2-1b")
    found = refusal(job(card, batch={"num_sequences": 2, "sequence_tokens": 128}), cpus(2, memory_gib=24), card)
    assert "layers" in str(found.fit)


def test_more_workers_than_nodes_of_accelerators():
    assert "--workers 1" in str(refusal(job(num_workers=8), gpus(8)).fit)


def test_sequences_longer_than_the_model():
    card = CARD.model_copy(update={"max_sequence_tokens": 64})
    assert "sequence_tokens = 128" in refusal(job(), cpus(), card).reason


def test_programs_are_planned_by_their_batch_and_bytes():
    program = TrainJob.from_data({"name": "p", "num_steps": 100, "program": "m:f", "batch": {"num_sequences": 10}}, origin="test")
    assert plan(program, cpus(4), None).num_workers == 2
    assert "not checked" in plan(program, cpus(2), None).notes[-1]
    heavy = plan_layout(program, cpus(2, memory_gib=12), None, param_bytes=10**9)
    assert isinstance(heavy, Plan) and heavy.layout.fsdp == 2
    assert isinstance(plan_layout(program, cpus(2, memory_gib=2), None, param_bytes=10**9), Infeasible)


def test_smaller_gangs_carry_the_same_batch():
    asked = job(num_workers=4, layout={"fsdp": 4})
    found = smaller_layouts(asked, cpus(4), plan(asked, cpus(4)), CARD)
    assert set(found) == {1, 2} and all(layout.num_devices == workers for workers, layout in found.items())


@settings(deadline=None)
@given(cores=st.integers(1, 64), sequences=st.integers(1, 64), tp=st.none() | st.integers(1, 4), fsdp=st.none() | st.integers(1, 8))
def test_a_plan_multiplies_to_its_devices_and_divides_its_batch(cores, sequences, tp, fsdp):
    asked = job(batch={"num_sequences": sequences, "sequence_tokens": 128}, layout={"tp": tp, "fsdp": fsdp})
    found = plan_layout(asked, cpus(cores, memory_gib=256), CARD)
    if isinstance(found, Infeasible):
        assert found.reason
        return
    assert found.layout.num_devices == found.num_workers <= cores
    assert sequences % (found.layout.num_data_shards * found.layout.num_microbatches) == 0
    assert tp in (None, found.layout.tp) and fsdp in (None, found.layout.fsdp)
    assert plan_layout(asked, cpus(cores, memory_gib=256), CARD) == found


def test_planning_never_imports_jax():
    code = "import sys, colossus.plan, colossus.catalog.chips; sys.exit(any(name in sys.modules for name in ('jax', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_the_recipe_fits_a_small_machine(cores):
    card = load_model("llama-3m")
    assert plan(job(card), cpus(cores, memory_gib=4 * cores), card).num_workers == cores
