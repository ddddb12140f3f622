"""How machines fail, from published counts, one TOML file each; ``profile`` turns the counts into rates that a simulation draws from."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from colossus.catalog.entry import unknown
from colossus.spec.base import Spec
from colossus.spec.faults import Component, Duration, Effect, FaultClass, FaultProfile, Share, Unit
from colossus.spec.machine import How
from colossus.spec.units import Seconds

DAY_S = 86400.0
_FOLDER = "reliability"
_Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]


class CauseEntry(Spec):
    """What one cause did. Its rate is one of three: ``num_interruptions`` counted, ``num_faults_per_thousand_unit_days`` published, or ``mtbf_s`` of one unit
    that is no lemon.

    ``per``: what the count is spread over; ``takes``: what is away until it is repaired. ``source`` and ``how`` of the rate and ``times_source``
    of detect, diagnose and repair, where they differ from the file's.
    """

    cause: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    component: Component
    effect: Effect = Effect.CRASH
    per: Unit = Unit.CHIP
    takes: Unit = Unit.NODE
    num_interruptions: Annotated[int, Field(ge=1)] | None = None
    num_faults_per_thousand_unit_days: Annotated[float, Field(gt=0)] | None = None
    mtbf_s: Annotated[Seconds, Field(gt=0)] | None = None
    shape: Annotated[float, Field(gt=0, le=10)] = 1.0
    detect: Duration | None = None
    diagnose: Duration | None = None
    repair: Duration | None = None
    slowdown_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    source: str | None = None
    how: How | None = None
    times_source: str | None = None

    @model_validator(mode="after")
    def _has_one_rate(self) -> Self:
        given = [name for name in ("num_interruptions", "num_faults_per_thousand_unit_days", "mtbf_s") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"gives {' and '.join(given) or 'no rate'}; exactly one of num_interruptions, num_faults_per_thousand_unit_days, mtbf_s is its rate"
            )
        if self.per is Unit.NONE:
            raise ValueError("per = none: a rate is of chips, nodes, racks, pods or the site")
        return self


class Observed(Spec):
    """What was published of the run's outcome, to hold a simulation against. ``bound``: the value itself, or what it was above or below."""

    what: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    value: float
    bound: Literal["equal", "above", "below"] = "equal"
    num_chips: Annotated[int, Field(ge=1)] | None = None
    source: str | None = None
    how: How = How.MEASURED


class ReliabilityEntry(Spec):
    """Interruptions of one run or fleet of ``num_nodes`` nodes; ``date`` as published, ISO 8601.

    ``num_interruptions``: unexpected ones, all causes together. ``age_s``: how old the machine was when counting began; only Weibull causes ask.
    ``base``: another file whose causes stand here too, but those named in ``without``.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    source: Annotated[str, Field(min_length=1)]
    date: _Date
    how: How = How.MEASURED
    notes: str | None = None
    base: str | None = None
    without: list[str] = Field(default_factory=list)
    num_chips: Annotated[int, Field(ge=1)]
    num_nodes: Annotated[int, Field(ge=1)]
    num_racks: Annotated[int, Field(ge=1)] | None = None
    num_pods: Annotated[int, Field(ge=1)] | None = None
    num_interruptions: Annotated[int, Field(ge=1)] | None = None
    duration_s: Annotated[Seconds, Field(gt=0)]
    age_s: Annotated[Seconds, Field(ge=0)] = 0.0
    lemon_fraction: Share = 0.0
    lemon_factor: Annotated[float, Field(ge=1)] = 1.0
    lemons_source: str | None = None
    failed_repair_fraction: Share = 0.0
    idle_fraction: Share = 1.0
    detect: Duration
    diagnose: Duration
    repair: Duration
    times_source: Annotated[str, Field(min_length=1)]
    causes: list[CauseEntry] = Field(default_factory=list)
    observed: list[Observed] = Field(default_factory=list)

    @model_validator(mode="after")
    def _counts_add_up(self) -> Self:
        counted = sum(each.num_interruptions or 0 for each in self.causes if each.effect is not Effect.PLANNED)
        if self.base is None and counted and counted != self.num_interruptions:
            raise ValueError(f"num_interruptions = {self.num_interruptions}, but the unplanned causes add up to {counted}")
        for cause in self.causes:
            self.num_units(cause.per)
        return self

    def num_units(self, unit: Unit) -> int:
        """How many of ``unit`` the counts are of."""
        number = {Unit.CHIP: self.num_chips, Unit.NODE: self.num_nodes, Unit.RACK: self.num_racks, Unit.POD: self.num_pods, Unit.SITE: 1}[unit]
        if number is None:
            raise ValueError(f"a cause is per {unit}, so num_{unit}s must say how many there were")
        return number

    @property
    def node_mtbf_s(self) -> float:
        """Time between unexpected interruptions that one node causes: T nodes / interruptions; without a total, of all rates together."""
        if self.num_interruptions is not None:
            return self.duration_s * self.num_nodes / self.num_interruptions
        rate = sum(self.num_units(each.per) / self._mean_mtbf_s(each) for each in self.causes if each.effect is not Effect.PLANNED)
        return self.num_nodes / rate if rate else inf

    def profile(self) -> FaultProfile:
        """The rates behind the counts, each of one unit of its kind: with ``duration_s`` T, a unit's mtbf_s = T units / count."""
        return FaultProfile(
            name=self.name,
            source=f"{self.source} ({self.date})",
            classes=[self._to_class(each) for each in self.causes],
            lemon_fraction=self.lemon_fraction,
            lemon_factor=self.lemon_factor,
            failed_repair_fraction=self.failed_repair_fraction,
            idle_fraction=self.idle_fraction,
            num_nodes_per_rack=self._num_nodes_per(self.num_racks),
            num_nodes_per_pod=self._num_nodes_per(self.num_pods),
            detect=self.detect,
            diagnose=self.diagnose,
            repair=self.repair,
        )

    def _num_nodes_per(self, number: int | None) -> int | None:
        return max(1, round(self.num_nodes / number)) if number else None

    def observation(self, what: str, num_chips: int | None = None) -> Observed:
        """The one called ``what``, of so many chips where there are several; KeyError where there is none."""
        for each in self.observed:
            if each.what == what and (num_chips is None or each.num_chips == num_chips):
                return each
        raise KeyError(f"{self.name}: nothing observed called {what} of {num_chips} chips")

    def _to_class(self, cause: CauseEntry) -> FaultClass:
        how = cause.how or self.how
        copied = ("cause", "component", "effect", "per", "takes", "shape", "detect", "diagnose", "repair", "slowdown_fraction")
        return FaultClass(
            **{name: getattr(cause, name) for name in copied},
            mtbf_s=self._scale_s(cause),
            source=f"{how}: {cause.source or self.source}",
        )

    def _scale_s(self, cause: CauseEntry) -> float:
        """``mtbf_s`` of FaultClass: the mean of all units, lemons among them; at shape != 1 the scale of a hazard that gives the count from age a to a + T.

        T N / n generalises to ((a + T)^k - a^k) N / n = m^k.
        """
        mean_s, shape = self._mean_mtbf_s(cause), cause.shape
        if cause.mtbf_s is not None or shape == 1:
            return mean_s
        window = (self.age_s + self.duration_s) ** shape - self.age_s**shape
        return float((window * mean_s / self.duration_s) ** (1 / shape))

    def _mean_mtbf_s(self, cause: CauseEntry) -> float:
        if cause.num_interruptions is not None:
            return self.duration_s * self.num_units(cause.per) / cause.num_interruptions
        if cause.num_faults_per_thousand_unit_days is not None:
            return 1000 * DAY_S / cause.num_faults_per_thousand_unit_days
        assert cause.mtbf_s is not None
        of_nodes = cause.per in (Unit.CHIP, Unit.NODE) and cause.takes in (Unit.CHIP, Unit.NODE)
        return cause.mtbf_s / (1 + self.lemon_fraction * (self.lemon_factor - 1)) if of_nodes else cause.mtbf_s


def reliability_names() -> list[str]:
    """Every name that ``load_reliability`` knows, sorted; a scenario's ``faults`` is one of them or "none"."""
    return sorted(file.name.removesuffix(".toml") for file in (files("colossus.catalog") / _FOLDER).iterdir() if file.name.endswith(".toml"))


@cache
def load_reliability(name: str) -> ReliabilityEntry:
    """The file called ``name``, with its base's causes; CatalogError names the nearest valid names."""
    if name not in reliability_names():
        raise unknown("fault profile", name, ["none", *reliability_names()])
    file = files("colossus.catalog") / _FOLDER / f"{name}.toml"
    return ReliabilityEntry.from_data(_with_base(tomllib.loads(file.read_text(encoding="utf-8"))), origin=str(file))


def _with_base(data: dict[str, Any]) -> dict[str, Any]:
    """The base's causes that are neither left out nor named again, then the file's own. The base's source goes with each."""
    if "base" not in data:
        return data
    below = load_reliability(data["base"])
    left_out = {*data.get("without", []), *(each.get("cause") for each in data.get("causes", []))}
    kept = [each.to_data() | {"source": each.source or below.source, "how": str(each.how or below.how)} for each in below.causes if each.cause not in left_out]
    return data | {"causes": [*kept, *data.get("causes", [])]}


def load_profile(name: str) -> FaultProfile:
    """The fault profile called so."""
    return load_reliability(name).profile()


def node_mtbf_s() -> float:
    """The prior for a node that nothing is known of: Llama 3's, 264 days."""
    return load_reliability("llama-3").node_mtbf_s
