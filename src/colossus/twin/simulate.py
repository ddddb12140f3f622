"""From a job, a machine and a scenario to what comes of them: replicas played one after the other, the first with its course."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import nlargest

from colossus.catalog.reliability import load_profile
from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.event import Event
from colossus.spec.faults import Duration, FaultProfile
from colossus.spec.machine import Machine
from colossus.spec.scenario import Scenario
from colossus.spec.simulation import Course, SimulatedIncident, Simulation, Tally
from colossus.spec.units import format_duration
from colossus.twin.book import BOOK, IncidentRow
from colossus.twin.bounds import check_faults
from colossus.twin.course import course_of
from colossus.twin.log import events_of
from colossus.twin.power import PowerModel
from colossus.twin.setting import Setting
from colossus.twin.streams import stream
from colossus.twin.training import Job
from colossus.twin.workload import Workload

_NUM_INCIDENTS = 200
NO_FAULTS = "none"


def simulate(
    workload: Workload,
    machine: Machine,
    scenario: Scenario,
    *,
    num_replicas: int = 1,
    num_incidents: int = _NUM_INCIDENTS,
    on_replica: Callable[[int], object] = lambda done: None,
) -> Simulation:
    """Plays ``num_replicas`` with seeds of their own. Equal inputs give equal output, byte for byte.

    ``num_incidents``: how many of the first replica's are told one by one, the costliest. ``on_replica``: called with how many are done.
    """
    twin = _Twin(workload, machine, scenario)
    first = twin.play(0, is_kept=True)
    tallies = [twin.tally(first, 0)]
    course = twin.course(first)
    on_replica(1)
    for replica in range(1, num_replicas):
        tallies.append(twin.tally(twin.play(replica), replica))
        on_replica(replica + 1)
    return twin.told(first, tallies, course, num_incidents)


def simulated_events(workload: Workload, machine: Machine, scenario: Scenario) -> Iterator[Event]:
    """The events of the first replica, in the schema that real runs write."""
    twin = _Twin(workload, machine, scenario)
    return events_of(twin.play(0, is_logged=True))


def check(workload: Workload, machine: Machine, scenario: Scenario) -> None:
    """A SpecError where ``simulate`` would raise one; nothing is played."""
    _Twin(workload, machine, scenario)


class _Twin:
    def __init__(self, workload: Workload, machine: Machine, scenario: Scenario) -> None:
        self.profile = profile_of(scenario)
        self.power = PowerModel.of(machine, workload, scenario)
        self.setting = Setting.of(workload, machine, scenario, self.profile)
        check_faults(self.profile, self.setting.grounds, scenario)

    def play(self, replica: int, *, is_kept: bool = False, is_logged: bool = False) -> Job:
        scenario = self.setting.scenario
        seed = scenario.seed + replica
        limits = self.power.limits(scenario.horizon_s, stream(seed, "grid")) if self.power else ()
        job = Job(self.setting, seed=seed, limits=limits, is_kept=is_kept, is_logged=is_logged)
        job.run()
        return job

    def course(self, job: Job) -> Course:
        return course_of(job, self.power)

    def tally(self, job: Job, replica: int) -> Tally:
        setting, wall_s = self.setting, job.wall_s
        workload, classes = setting.workload, setting.profile.classes
        steps = job.last_step
        spent = dict(zip(BOOK, job.book, strict=True))
        goodput_s = max(0.0, spent.pop(BOOK[0]))  # rounding may leave less than nothing
        node_s = job.nodes.node_s(setting.machine.num_nodes, wall_s)
        tokens = float(steps * workload.tokens_per_step)
        bill = (
            self.power.bill(
                wall_s=wall_s,
                tokens=tokens,
                goodput_s=goodput_s,
                node_s=node_s,
                stepping_s=job.stepping_s,
                saving_s=spent[BOOK[1]],
                limits=job.limits,
            )
            if self.power
            else None
        )
        return Tally.model_construct(
            seed=setting.scenario.seed + replica,
            wall_s=wall_s,
            done=job.is_done,
            goodput_s=goodput_s,
            badput_s={cause: seconds for cause, seconds in spent.items() if seconds},
            steps=steps,
            lost_steps=job.lost_steps,
            tokens=tokens,
            time_to_train_s=wall_s if job.is_done else wall_s * workload.num_steps / steps if steps else None,
            interruptions=dict(sorted(job.num_interruptions.items())),
            faults={each.cause: number for each, number in zip(classes, job.num_faults, strict=True) if number},
            num_checkpoints=job.progress.num_saves,
            node_s=node_s,
            bill=bill,
        )

    def told(self, first: Job, tallies: list[Tally], course: Course, num_incidents: int) -> Simulation:
        setting = self.setting
        workload, machine = setting.workload, setting.machine
        costliest = sorted(nlargest(num_incidents, first.incidents, key=lambda row: (row.lost_s + sum(row.parts_s), -row.time_s)))
        return Simulation(
            name=workload.name,
            machine=machine.name,
            chip=workload.chip,
            num_chips=machine.num_chips,
            num_nodes=machine.num_nodes,
            num_job_chips=workload.num_job_chips,
            num_job_nodes=setting.num_gang,
            layout=workload.layout,
            step_s=workload.step_s,
            parts_s=dict(workload.parts_s),
            tokens_per_step=workload.tokens_per_step,
            num_steps=workload.num_steps,
            plan_s=workload.plan_s,
            model_flop_per_token=workload.model_flop_per_token,
            peak_flop_per_s=workload.peak_flop_per_s,
            scenario=setting.scenario,
            fault_profile=self.profile.name,
            tallies=tallies,
            course=course,
            incidents=[self._incident(row) for row in costliest],
            chosen=self._chosen(first),
            notes=self._notes(first),
        )

    def _incident(self, row: IncidentRow) -> SimulatedIncident:
        each = None if row.kind is None else self.profile.classes[row.kind]
        detect_s, wait_s, start_s, restore_s, compile_s = row.parts_s
        return SimulatedIncident(
            time_s=row.time_s,
            cause=row.name,
            component=each.component.value if each else "",
            effect=each.effect.value if each else "",
            node=row.node,
            action=str(row.action),
            reason=row.reason,
            lost_steps=row.from_step - row.to_step,
            lost_s=row.lost_s,
            detect_s=detect_s,
            wait_s=wait_s,
            start_s=start_s,
            restore_s=restore_s,
            compile_s=compile_s,
            source=row.source,
        )

    def _chosen(self, first: Job) -> dict[str, str]:
        setting, grounds = self.setting, self.setting.grounds
        found = {
            "spares": f"{grounds.num_nodes - grounds.num_gang_nodes:,} nodes",
            "expected failures": f"one every {format_duration(setting.mtbf_s)}" if setting.mtbf_s < 1e14 else "none",
            "checkpoint interval": first.interval_reason,
            "save": f"{format_duration(setting.save_s)}, of which steps stand still {format_duration(setting.blocked_s)}",
        }
        if setting.memory_steps:
            found["copies in memory"] = f"every {setting.memory_steps:,} steps ({format_duration(setting.memory_steps * setting.workload.step_s)})"
        return found

    def _notes(self, first: Job) -> list[str]:
        found = [f"The run was given up: {first.failed}."] if first.failed else []
        if first.num_corrupt:
            found.append(f"At the end the state was silently corrupt ({first.num_corrupt} undetected); see recovery.sdc_check_interval_s.")
        return found


def profile_of(scenario: Scenario) -> FaultProfile:
    """The scenario's faults; those that it injects must be causes among them."""
    found = _profile_of(scenario)
    causes = [each.cause for each in found.classes]
    wrong = [injection.cause for injection in scenario.injections if injection.cause not in causes]
    if wrong:
        hint = nearest(wrong[0], causes) or ("that profile has no faults" if not causes else None)
        raise SpecError("scenario", [Problem(path="injections.cause", value=repr(wrong[0]), rule=f"is no cause of the profile {found.name}", hint=hint)])
    return found


def _profile_of(scenario: Scenario) -> FaultProfile:
    if isinstance(scenario.faults, FaultProfile):
        return scenario.faults
    if scenario.faults == NO_FAULTS:
        nothing = Duration(mean_s=0.0)
        return FaultProfile(name=NO_FAULTS, detect=nothing, diagnose=nothing, repair=nothing)
    return load_profile(scenario.faults)
