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
    ``between``: from one step to the next. A worker's death takes ``exit`` to be seen and ``peer`` to be felt by the others. ``end``: from the last save to
    the run's end. ``cold_*``: of a first run, which finds neither prepared data nor compiled programs. ``job`` and ``data``: digests of what was measured.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    machine: str
    how: How = How.MEASURED
    source: str
    date: str = ""
    runs: list[str] = Field(default_factory=list)
    job: str = ""
    data: str = ""
    data_s: Time = 0.0
    cold_data_s: Time | None = None
    num_tokens: int | None = None
    num_validation_tokens: int | None = None
    vocab_size: int | None = None
    launch_s: Time = 0.0
    import_s: Time
    standby_s: Time
    join_s: Time
    reform_s: Time
    compile_s: Time
    cold_compile_s: Time | None = None
    kept_s: Time
    init_s: Time
    cold_init_s: Time | None = None
    restore_ram_s: Time
    restore_disk_s: Time
    step_s: Annotated[Seconds, Field(gt=0)] | None = None
    step_excess_fraction: Annotated[float, Field(gt=-1)] = 0.0
    first_step_s: Time
    between_s: Time = 0.0
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

    def begun_cold(self) -> RunTimes:
        """The same where nothing is prepared and nothing compiled yet, as far as that was ever measured."""
        cold = {"data_s": self.cold_data_s, "compile_s": self.cold_compile_s, "init_s": self.cold_init_s}
        return self.model_copy(update={name: seconds for name, seconds in cold.items() if seconds is not None})

    def scaled(self, *, step_fraction: float, bytes_fraction: float) -> RunTimes:
        """For another job, whose steps take so many times as long and whose checkpoints are so many times as large."""
        steps = ("first_step_s", "evaluation_s", "first_evaluation_s", "profile_s")
        sizes = ("copy_s", "save_s", "blocked_s", "last_save_s", "last_blocked_s", "restore_ram_s", "restore_disk_s")
        update = {name: getattr(self, name) * step_fraction for name in steps} | {name: getattr(self, name) * bytes_fraction for name in sizes}
        return self.model_copy(update=update | {"save_bytes": round(self.save_bytes * bytes_fraction)})
