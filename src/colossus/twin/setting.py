"""What one simulation holds fixed over all its replicas: sizes, rates and costs derived once from job, machine and scenario."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from colossus.policy.checkpoint import expected_mtbf_s, interval_steps, ram_interval_steps
from colossus.policy.recovery import Decision, Fault, RecoveryState, decide
from colossus.spec.errors import Problem, SpecError
from colossus.spec.faults import Effect, FaultClass, FaultProfile, Unit
from colossus.spec.job import RecoverySpec
from colossus.spec.machine import Machine
from colossus.spec.scenario import MOST_NODES, Recovery, Scenario, Tier
from colossus.twin.faults import Grounds, is_of_job, place_of, rate_per_s
from colossus.twin.progress import Pace
from colossus.twin.streams import slowest_of
from colossus.twin.workload import Workload

_NEVER_S = 1e15
# What an interruption by the site's power is called.
GRID = "grid"
# A twin's faults are diagnosed: they are of chips and cables, and no reason to give the program up.
_PATIENCE = 10**9


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of faults as the loop needs it. ``group``: nodes that one takes; ``needs_disk``: whether the copies in memory go with them."""

    cause: str
    effect: Effect
    told: str
    is_of_job: bool
    group: int
    needs_disk: bool
    slowdown_fraction: float
    mean_repair_s: float


@dataclass(frozen=True)
class Setting:
    """``kinds``: the profile's classes, in order. ``replica_nodes``: of one data-parallel replica. ``memory_steps``: between copies to memory, None: there are none.
    ``reforms``: survivors stay in their processes.

    Paces, intervals and decisions are pure functions of a few numbers, and remembered.
    """

    workload: Workload
    machine: Machine
    scenario: Scenario
    profile: FaultProfile
    grounds: Grounds
    num_gang: int
    replica_nodes: int
    save_s: float
    blocked_s: float
    restore_disk_s: float
    restore_memory_s: float
    copy_s: float
    memory_steps: int | None
    kinds: tuple[Kind, ...]
    disk_mtbf_s: float
    mtbf_s: float
    recovery_spec: RecoverySpec
    reforms: bool
    compile_s: float
    _paces: dict[tuple[int, float, float, float], Pace] = field(default_factory=dict)
    _intervals: dict[float, tuple[int | None, str]] = field(default_factory=dict)
    _decisions: dict[tuple[int, str, int, int, int], Decision] = field(default_factory=dict)

    @classmethod
    def of(cls, workload: Workload, machine: Machine, scenario: Scenario, profile: FaultProfile) -> Setting:
        grounds = _grounds(workload, machine, scenario, profile)
        classes = profile.classes
        tier = scenario.checkpoint.memory
        lost = tuple(_loses_memory(each, tier) for each in classes)
        stops = [each.effect is not Effect.SLOW for each in classes]
        rates = [rate_per_s(each, grounds, scenario) * _share_of_gang(each, grounds) for each in classes]
        for injection in scenario.injections:
            rates[place_of(classes, injection.cause)] += 1 / injection.every.mean_s
        all_per_s = sum(rate for rate, stop in zip(rates, stops, strict=True) if stop)
        disk_per_s = sum(rate for rate, away, stop in zip(rates, lost, stops, strict=True) if away and stop)
        nodes = grounds.num_gang_nodes
        state_bytes = scenario.checkpoint.state_bytes_per_parameter * workload.num_parameters
        disk_s = state_bytes / min(scenario.checkpoint.storage_bytes_per_s, scenario.checkpoint.storage_bytes_per_s_per_node * nodes)
        copy_s = state_bytes / nodes / scenario.checkpoint.memory_bytes_per_s_per_node
        per_replica = workload.num_chips_per_replica / machine.node.num_chips
        return cls(
            workload=workload,
            machine=machine,
            scenario=scenario,
            profile=profile,
            grounds=grounds,
            num_gang=nodes,
            replica_nodes=max(1, ceil(per_replica)),
            save_s=disk_s,
            blocked_s=disk_s * scenario.checkpoint.blocked_fraction,
            restore_disk_s=disk_s,
            restore_memory_s=copy_s,
            copy_s=0.0 if tier is Tier.NONE else copy_s,
            memory_steps=_memory_steps(scenario, workload, copy_s, all_per_s - disk_per_s),
            kinds=tuple(_kind(each, profile, grounds, tier) for each in classes),
            disk_mtbf_s=_mtbf_s(disk_per_s),
            mtbf_s=_mtbf_s(all_per_s),
            reforms=scenario.recovery.kind in (Recovery.HOT, Recovery.ELASTIC),
            compile_s=scenario.recovery.compile.mean_s,
            recovery_spec=RecoverySpec(allow_fewer_workers=scenario.recovery.kind is Recovery.ELASTIC, max_restarts_without_progress=_PATIENCE),
        )

    def pace(self, num_gang: int, slowdown_fraction: float = 0.0, diurnal_fraction: float = 0.0, speed_fraction: float = 1.0) -> Pace:
        key = (num_gang, slowdown_fraction, diurnal_fraction, speed_fraction)
        found = self._paces.get(key)
        if found is None:
            found = self._paces[key] = self._pace(*key)
        return found

    def _pace(self, num_gang: int, slowdown_fraction: float, diurnal_fraction: float, speed_fraction: float) -> Pace:
        """A step of a gang of so many nodes, its slowest chip so much slower, at that part of the day, under a cap on speed."""
        workload, stragglers = self.workload, self.scenario.stragglers
        step_s = workload.step_s
        congested_s = stragglers.congestion_fraction * sum(seconds for name, seconds in workload.parts_s.items() if is_communication(name))
        alone_s = step_s * slowest_of(num_gang, stragglers.jitter_fraction) + congested_s + diurnal_fraction * step_s
        straggling_s = alone_s / (1 - slowdown_fraction)
        fewer_s = 0.0 if num_gang == self.num_gang else straggling_s * (self._longer(num_gang) - 1)
        cap_s = 0.0 if speed_fraction == 1 else (straggling_s + fewer_s) * (1 / speed_fraction - 1)
        check = self.scenario.recovery.sdc_check_interval_s
        return Pace.of(
            productive_s=step_s,
            straggler_s=straggling_s - step_s,
            fewer_s=fewer_s,
            cap_s=cap_s,
            copy_s=self.copy_s / self.memory_steps if self.memory_steps else 0.0,
            check_s=self.scenario.recovery.sdc_check_s / check * (straggling_s + fewer_s + cap_s) if check else 0.0,
        )

    def _longer(self, num_gang: int) -> float:
        chips = num_gang * self.machine.node.num_chips
        planned = self.workload.step_s_by_chips.get(chips)
        return self.num_gang / num_gang if planned is None else planned / self.workload.step_s

    def interval_steps(self, step_s: float, *, num_disk_losses: int, elapsed_s: float) -> tuple[int | None, str]:
        """Steps between saves of a gang that begins now, and why."""
        found = self._intervals.get(step_s)
        if found is not None:
            return found
        wanted = self.scenario.checkpoint.interval_s
        if wanted == "adaptive":
            mtbf_s = expected_mtbf_s(prior_mtbf_s=self.disk_mtbf_s, num_failures=num_disk_losses, elapsed_s=max(elapsed_s, 1.0))
            return self._optimum(step_s, mtbf_s)
        found = self._intervals[step_s] = self._fixed(step_s) if wanted != "daly" else self._optimum(step_s, self.disk_mtbf_s)
        return found

    def _fixed(self, step_s: float) -> tuple[int | None, str]:
        wanted = self.scenario.checkpoint.interval_s
        if not isinstance(wanted, float):
            return None, "no checkpoints are kept"
        steps = max(1, round(wanted / step_s), ceil(self.save_s / step_s))
        return steps, f"every {steps * step_s:.3g} s, as the scenario says"

    def _optimum(self, step_s: float, mtbf_s: float) -> tuple[int, str]:
        recovery = self.scenario.recovery
        restart_s = recovery.start.mean_s + recovery.compile.mean_s + self.restore_disk_s
        decision = interval_steps(save_s=self.save_s, blocked_s=self.blocked_s, step_s=step_s, mtbf_s=mtbf_s, restart_s=restart_s)
        return decision.interval_steps, decision.reason

    def decide(self, kind: int | None, name: str, num_gang: int, num_spares: int, num_repair: int) -> Decision:
        """What policy.recovery does when the gang has so many nodes left; ``kind`` None: we or the grid stopped it."""
        key = (-1 if kind is None else kind, name, num_gang, num_spares, num_repair)
        found = self._decisions.get(key)
        if found is None:
            found = self._decisions[key] = self._decide(*key)
        return found

    def smaller(self, possible: int) -> int:
        """The largest gang of whole replicas on so many nodes that the estimate says fits; 0: none."""
        size, planned, per_node = possible // self.replica_nodes * self.replica_nodes, self.workload.step_s_by_chips, self.machine.node.num_chips
        while planned and size > 0 and size < self.num_gang and size * per_node not in planned:
            size = size - self.replica_nodes if size * per_node > min(planned) else 0
        return size

    def _decide(self, kind: int, name: str, num_gang: int, num_spares: int, num_repair: int) -> Decision:
        target, possible = self.num_gang, num_gang + num_spares
        fault = Fault(cause=name, detail="ordered") if kind < 0 else Fault(cause=self.kinds[kind].told, detail=name)
        can_reform = self.reforms and name != GRID
        smaller = self.smaller(min(possible, target))
        state = RecoveryState(
            fault=fault,
            num_workers=target,
            num_reformable=min(num_gang, target - 1) if can_reform else 0,
            num_standbys=num_spares + (num_gang == target),
            num_possible=possible,
            smaller_sizes=(smaller,) if 0 < smaller < target else (),
            num_expected=num_repair,
        )
        return decide(state, self.recovery_spec)


def is_communication(part: str) -> bool:
    """Whether a part of an estimated step is of the network, by the names of estimate.step."""
    return part in ("tp", "cp", "ep", "pp", "dp", "communication")


_TOLD = {Effect.HANG: "hung", Effect.CORRUPT: "corrupt", Effect.PLANNED: "planned"}


def _kind(each: FaultClass, profile: FaultProfile, grounds: Grounds, tier: Tier) -> Kind:
    return Kind(
        cause=each.cause,
        effect=each.effect,
        told=_TOLD.get(each.effect, "killed"),
        is_of_job=is_of_job(each),
        group=grounds.group(each.takes),
        needs_disk=_loses_memory(each, tier),
        slowdown_fraction=each.slowdown_fraction,
        mean_repair_s=(each.repair or profile.repair).mean_s,
    )


def _loses_memory(each: FaultClass, tier: Tier) -> bool:
    """Whether the state's copies in memory are gone with it: a lost node's own are; a peer's live unless a pod or the site goes. Corruption is in all copies."""
    if tier is Tier.NONE or each.effect is Effect.CORRUPT or each.takes in (Unit.POD, Unit.SITE):
        return True
    return tier is Tier.OWN and each.takes is not Unit.NONE and each.effect is not Effect.PLANNED


def _share_of_gang(each: FaultClass, grounds: Grounds) -> float:
    """Of a class's faults, those that hit the gang."""
    if each.takes is Unit.NONE or each.effect is Effect.PLANNED:
        return 1.0
    group = max(1, grounds.group(each.takes))
    return min(1.0, (grounds.num_gang_nodes + group - 1) / grounds.num_nodes)


def _mtbf_s(rate_per_s: float) -> float:
    return 1 / rate_per_s if rate_per_s else _NEVER_S


def _memory_steps(scenario: Scenario, workload: Workload, copy_s: float, healed_per_s: float) -> int | None:
    if scenario.checkpoint.memory is Tier.NONE:
        return None
    wanted = scenario.checkpoint.memory_interval_s
    return max(1, round(wanted / workload.step_s)) if wanted else ram_interval_steps(copy_s=copy_s, step_s=workload.step_s, mtbf_s=_mtbf_s(healed_per_s))


def _grounds(workload: Workload, machine: Machine, scenario: Scenario, profile: FaultProfile) -> Grounds:
    nodes = ceil(workload.num_job_chips / machine.node.num_chips)
    free = machine.num_nodes - nodes
    wanted = scenario.recovery.num_spares
    if free < 0:
        raise SpecError("simulation", [Problem(path="job", value=f"{nodes} nodes", rule=f"is more than the {machine.num_nodes} of {machine.name}")])
    if wanted is not None and wanted > free:
        rule = f"is more than the {free} nodes that a job of {nodes} leaves of the {machine.num_nodes} of {machine.name}"
        hint = f"at most recovery.num_spares={free}, or a job on fewer chips (--chips)"
        raise SpecError("scenario", [Problem(path="recovery.num_spares", value=str(wanted), rule=rule, hint=hint)])
    if nodes + free > MOST_NODES:
        raise SpecError(
            "simulation", [Problem(path="machine", value=f"{machine.num_nodes:,} nodes", rule=f"is more than the {MOST_NODES:,} that a simulation holds")]
        )
    spares = 0 if scenario.recovery.kind is Recovery.WAIT else free if wanted is None else wanted
    return Grounds.of(machine, scenario, profile, num_nodes=nodes + spares, num_gang_nodes=nodes)
