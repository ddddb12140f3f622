"""How a machine fails: classes of faults with their rates, and how long finding and mending each takes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from colossus.spec.base import FiniteSpec
from colossus.spec.units import Lasting, Seconds

Share = Annotated[float, Field(ge=0, le=1)]
# What a simulation calls interruptions that are no faults, and streams of chance of its own.
RESERVED = ("evicted", "grid", "grown", "lemons", "recovery")


class Duration(FiniteSpec):
    """A time with its spread. In a file, ``"10 min"`` alone is a constant one.

    ``spread``: of lognormal, sigma of the logarithm; of uniform, half the width over the mean (0..1); of the others, unused. ``mean_s`` is the mean of all.
    """

    mean_s: Annotated[Lasting, Field(ge=0)]
    kind: Literal["constant", "exponential", "lognormal", "uniform"] = "constant"
    spread: Annotated[float, Field(ge=0, le=3)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _read_short(cls, data: Any) -> Any:
        return {"mean_s": data} if isinstance(data, str | int | float) else data

    @model_validator(mode="after")
    def _fits(self) -> Duration:
        if self.kind == "uniform" and self.spread > 1:
            raise ValueError(f"spread {self.spread} of a uniform duration must be at most 1, else it would be negative")
        return self


class Component(StrEnum):
    """What failed."""

    GPU = "gpu"
    HBM = "hbm"
    NVLINK = "nvlink"
    NIC = "nic"
    OPTICS = "optics"
    SWITCH = "switch"
    HOST = "host"
    POWER_SUPPLY = "power_supply"
    COOLING = "cooling"
    STORAGE = "storage"
    SOFTWARE = "software"
    OPERATOR = "operator"
    UNKNOWN = "unknown"


class Effect(StrEnum):
    """What a fault does to a synchronous job: it dies, stands still, slows down, computes wrongly, or is stopped in good order."""

    CRASH = "crash"
    HANG = "hang"
    SLOW = "slow"
    CORRUPT = "corrupt"
    PLANNED = "planned"


class Unit(StrEnum):
    """What a rate is of, and what one fault takes: none (a process, which can start again where it was) up to all of the site."""

    NONE = "none"
    CHIP = "chip"
    NODE = "node"
    RACK = "rack"
    POD = "pod"
    SITE = "site"


class FaultClass(FiniteSpec):
    """One cause of faults. Each of the machine's ``per`` units has one every ``mtbf_s`` on average over all of
    them, lemons included; where ``shape`` is not 1, one by the age of ``mtbf_s``.

    ``shape``: of the Weibull hazard, (shape / mtbf) (age / mtbf)^(shape - 1): below 1 infant mortality, 1 exponential, above 1 wear. ``takes``: what is out
    of service until it is repaired; NONE: nothing, CHIP and NODE: the node. ``detect``: from the fault to the job's end or standstill being seen;
    ``diagnose``: from there to knowing what to do without; these and ``repair`` None: the profile's.
    """

    cause: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    component: Component
    effect: Effect = Effect.CRASH
    per: Unit = Unit.CHIP
    takes: Unit = Unit.NODE
    mtbf_s: Annotated[Seconds, Field(gt=0)]
    shape: Annotated[float, Field(gt=0, le=10)] = 1.0
    detect: Duration | None = None
    diagnose: Duration | None = None
    repair: Duration | None = None
    slowdown_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    source: str = ""

    @field_validator("cause")
    @classmethod
    def _is_free(cls, cause: str) -> str:
        if cause in RESERVED:
            raise ValueError(f"is a name that simulations use themselves ({', '.join(RESERVED)}); write another, e.g. {cause}_fault")
        return cause


class FaultProfile(FiniteSpec):
    """How often what fails, and the lemons: ``lemon_fraction`` of nodes that fail ``lemon_factor`` times as often as the others.

    A repair fails with ``failed_repair_fraction``: the node comes back as it was, a lemon still a lemon; else it is as the others.
    ``idle_fraction``: of its rate, what hardware has that does not step (spares, a gang that stands still); 0: only work breaks it.
    ``detect``, ``diagnose``, ``repair``: of classes that give none. ``num_nodes_per_rack``, ``num_nodes_per_pod``: what the rates of racks and pods are of.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    source: str = ""
    classes: list[FaultClass] = Field(default_factory=list)
    lemon_fraction: Share = 0.0
    lemon_factor: Annotated[float, Field(ge=1)] = 1.0
    failed_repair_fraction: Share = 0.0
    idle_fraction: Share = 1.0
    num_nodes_per_rack: Annotated[int, Field(ge=1)] | None = None
    num_nodes_per_pod: Annotated[int, Field(ge=1)] | None = None
    detect: Duration
    diagnose: Duration
    repair: Duration

    @model_validator(mode="after")
    def _names_differ(self) -> FaultProfile:
        names = [each.cause for each in self.classes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"cause {', '.join(twice)} stands twice; every cause needs its own name")
        return self
