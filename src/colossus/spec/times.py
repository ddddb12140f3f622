"""How long the parts of a run's life take beside its steps: what a twin of a machine needs to know of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.machine import How
from colossus.spec.units import Seconds

Time = Annotated[Seconds, Field(ge=0)]


class RunTimes(Spec):
    """Seconds, as ``how`` and ``source`` tell. ``machine``: whose, its identity; ``runs``: what they were measured on.

    Start: ``launch`` to the first worker started, ``import`` until it can join, ``standby`` the same beside a gang that trains; ``join`` a new gang,
    ``reform`` one of which some stayed. Before the first step: ``compile`` traced, ``kept`` taken over, ``init`` the first state, ``restore_ram``, ``restore_disk``.
    A gang's ``first_step`` and ``first_evaluation`` are longer than the others. ``step`` is of the measured job; ``step_excess_fraction``: mean over median of steps.
    A worker's death takes ``exit`` to be seen and ``peer`` to be felt by the others. ``end``: from the last save to the run's end.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    machine: str
    how: How = How.MEASURED
    source: str
    date: str = ""
    runs: list[str] = Field(default_factory=list)
    job: str = ""
    data_s: Time = 0.0
    launch_s: Time = 0.0
    import_s: Time
    standby_s: Time
    join_s: Time
    reform_s: Time
    compile_s: Time
    kept_s: Time
    init_s: Time
    restore_ram_s: Time
    restore_disk_s: Time
    step_s: Annotated[Seconds, Field(gt=0)] | None = None
    step_excess_fraction: Annotated[float, Field(gt=-1)] = 0.0
    first_step_s: Time
    data_wait_s: Time = 0.0
    profile_s: Time = 0.0
    evaluation_s: Time = 0.0
    first_evaluation_s: Time = 0.0
    copy_s: Time
    save_s: Time
    blocked_s: Time
    last_save_s: Time
    last_blocked_s: Time
    save_bytes: int = 0
    exit_s: Time = 0.02
    peer_s: Time = 0.1
    end_s: Time = 0.0
