"""Small jobs, machines and scenarios that tests of the twin share."""

from __future__ import annotations

from typing import Any

from colossus.catalog.machines import load_machine
from colossus.catalog.scenarios import load_scenario
from colossus.spec.faults import FaultProfile
from colossus.spec.machine import Machine
from colossus.spec.scenario import Scenario
from colossus.twin import Workload

DAY_S = 86400.0


def workload(*, num_chips: int = 1024, step_s: float = 5.0, num_steps: int = 20_000, chips_per_replica: int = 64) -> Workload:
    return Workload(
        name="job",
        chip="h100-sxm",
        num_job_chips=num_chips,
        num_chips_per_replica=chips_per_replica,
        layout="dp 16 x tp 64",
        step_s=step_s,
        parts_s={"gemm": 0.6 * step_s, "dp": 0.4 * step_s},
        tokens_per_step=1 << 22,
        num_steps=num_steps,
        num_parameters=70e9,
    )


def machine(num_chips: int = 1152) -> Machine:
    return load_machine(f"h100-sxm*{num_chips}")


def scenario(*assignments: str) -> Scenario:
    return load_scenario(assignments=("horizon_s=864000.0", *assignments))


def calm(*assignments: str) -> Scenario:
    """Nothing goes wrong and nothing is saved."""
    return scenario("faults=none", "stragglers.diurnal_fraction=0.0", "checkpoint.interval_s=off", "checkpoint.memory=none", *assignments)


def profile(*classes: dict[str, Any], **more: Any) -> FaultProfile:
    """A profile of these classes, each of a GPU that takes its node unless it says otherwise; found after a minute, mended after two hours."""
    filled = [
        {"cause": f"cause_{place}", "component": "gpu", "per": "node", "takes": "node", "mtbf_s": 100 * DAY_S} | each for place, each in enumerate(classes)
    ]
    data = {"schema": 1, "name": "test", "classes": filled, "detect": "60 s", "diagnose": "0 s", "repair": "2 h"} | more
    return FaultProfile.from_data(data, origin="test")


def failing(*classes: dict[str, Any], assignments: tuple[str, ...] = (), **more: Any) -> Scenario:
    """A scenario with such faults."""
    return scenario("stragglers.diurnal_fraction=0.0", *assignments).model_copy(update={"faults": profile(*classes, **more)})
