"""The planned time of a step: from measured kernels, from a peak alone, from the catalog, and laid over by runs on this machine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rates import RATES
from test_plan import CARD, cpus, gpus, job, plan

from colossus.catalog.models import load_model
from colossus.plan import plan_layout
from colossus.plan.own_runs import OwnRun, fit_own, planned_s
from colossus.plan.step_time import basis_of
from colossus.spec.kernels import Kernels
from colossus.spec.layout import Remat
from colossus.spec.machine import Figure, How, Machine
from colossus.spec.plan import OwnFit, Plan, StepEstimate


def measured(cores: int = 2, **changes: float) -> Machine:
    kernels = Kernels(date="2026-11-25", source="test", gangs=[RATES.model_copy(update=changes)])
    return cpus(cores).model_copy(update={"kernels": kernels})


def with_peak() -> Machine:
    machine = cpus(2)
    figure = lambda value: Figure(value=value, how=How.MEASURED, source="test")
    chip = machine.node.chip.model_copy(update={"peak_flop_per_s": {"float32": figure(2e11)}, "memory_bandwidth_bytes_per_s": figure(2e10)})
    return machine.model_copy(update={"node": machine.node.model_copy(update={"chip": chip})})


def step(found: Plan) -> StepEstimate:
    assert found.step is not None
    assert sum(found.step.parts_s.values()) == pytest.approx(found.step.step_s)
    assert found.step.lower_step_s <= found.step.step_s <= found.step.upper_step_s
    return found.step


def test_a_machine_never_measured_has_no_step_time_and_says_what_to_do():
    found = plan(job(), cpus(2))
    assert found.step is None and any("colossus machine --measure" in note for note in found.notes)


def test_measured_kernels_give_a_measured_step_with_checkpoint_and_compiling():
    found = plan(job(), measured())
    assert step(found).how is How.MEASURED and "2026-11-25" in step(found).source
    assert found.save_bytes == 3 * 4 * found.num_parameters
    assert found.compile_s == 3.0
    assert plan(job(layout={"remat": "full"}), measured()).expectation().remat is Remat.FULL
    assert found.expectation().memory_bytes == found.memory_per_device.total_bytes + found.worker_bytes


def test_a_gang_of_another_size_shares_what_the_measured_one_reached():
    one, two = plan(job(num_workers=1), measured()), plan(job(num_workers=2), measured())
    assert step(one).how is How.ESTIMATED and "2 workers" in step(one).source
    assert step(one).parts_s["gemm"] == pytest.approx(step(two).parts_s["gemm"], rel=0.1)


def test_a_peak_alone_gives_an_estimate_with_wide_ends():
    found = step(plan(job(), with_peak()))
    assert found.how is How.ESTIMATED and found.upper_step_s > 1.3 * found.step_s


def test_bfloat16_on_a_processor_is_not_guessed():
    found = plan(job(precision="bfloat16"), measured())
    assert found.step is None and any("bfloat16" in note for note in found.notes)


@pytest.mark.parametrize("chips", [1, 2, 8])
def test_accelerators_take_the_catalogs_figures(chips):
    card = load_model("llama-3.2-1b")
    asked = job(card, batch={"num_sequences": 16, "sequence_tokens": 2048}, precision="bfloat16")
    found = step(plan(asked, gpus(chips), card))
    assert found.how is How.DATASHEET and "h100-sxm" in found.source
    assert 0.02 < found.step_s * chips < 2.0


def test_dp_copies_what_fsdp_shards():
    card = load_model("llama-3.2-1b")
    asked = lambda **layout: job(card, batch={"num_sequences": 16, "sequence_tokens": 2048}, precision="bfloat16", layout=layout)
    parts = [step(plan(asked(**layout), gpus(8), card)).parts_s for layout in ({"fsdp": 8}, {"dp": 2, "fsdp": 4}, {"dp": 4, "fsdp": 2}, {"dp": 8})]
    assert [found["optimizer"] / parts[0]["optimizer"] for found in parts] == pytest.approx([1, 2, 4, 8])


def own_run(name: str = "a", *, factor: float, parts: bool = True) -> OwnRun:
    planned = step(plan(job(layout={"dp": 2}), measured()))
    seen = {"gemm": 2 * planned.parts_s["gemm"], "communication": planned.parts_s["dp"], "elementwise": planned.parts_s["elementwise"]}
    return OwnRun(name=name, planned=planned, steps_s=[planned.step_s * factor * wobble for wobble in (0.98, 1.0, 1.02)], parts_s=seen if parts else {})


@settings(deadline=None)
@given(factor=st.floats(0.4, 3.0))
def test_after_one_run_the_plan_is_what_the_run_took(factor):
    run = own_run(factor=factor, parts=False)
    found = fit_own([run], machine="m", basis="b", date="2026-11-25")
    assert planned_s(run, found.factors) == pytest.approx(run.median_s, rel=0.05)
    assert found.median_error_fraction < 0.05 and found.lower_fraction <= 1 <= found.upper_fraction


def test_a_profiled_step_tells_compute_from_communication():
    run = own_run(factor=1.6)
    factors = fit_own([run], machine="m", basis="b", date="2026-11-25").factors
    assert factors["compute"] > 1.1 * factors["communication"]


def test_what_runs_do_not_tell_stays_as_it_was():
    planned = step(plan(job(num_workers=1), measured()))
    run = OwnRun(name="a", planned=planned, steps_s=[planned.step_s] * 3, parts_s={})
    assert fit_own([run], machine="m", basis="b", date="d").factors["communication"] == pytest.approx(1.0, rel=1e-3)


def fitted(machine: Machine, factor: float) -> OwnFit:
    return OwnFit(
        machine=machine.identity,
        basis=basis_of(machine),
        date="2026-11-25",
        num_runs=2,
        runs=["a", "b"],
        factors={"compute": factor},
        median_error_fraction=0.01,
        lower_fraction=0.9,
        upper_fraction=1.2,
    )


def test_the_next_plan_uses_the_fit_and_says_so():
    machine = measured()
    plain, own = plan_layout(job(), machine, CARD), plan_layout(job(), machine, CARD, own=fitted(machine, 2.0))
    assert isinstance(plain, Plan) and isinstance(own, Plan)
    assert step(own).parts_s["gemm"] == pytest.approx(2 * step(plain).parts_s["gemm"])
    assert "2 runs of this machine" in step(own).source


def test_a_fit_to_an_older_measurement_or_another_machine_is_not_used_and_is_told():
    machine = measured()
    for other in (measured(gemm_flop_per_s=2e11), measured(cores=4)):
        found = plan_layout(job(num_workers=2), machine, CARD, own=fitted(other, 2.0))
        assert isinstance(found, Plan)
        assert step(found).step_s == step(plan(job(num_workers=2), machine)).step_s
        assert any("colossus calibrate RUN" in note for note in found.notes)
