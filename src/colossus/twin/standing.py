"""The gang while it stands: what stopped it, what policy decides, and the way back."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from colossus.policy.health import is_suspect, rollback_tries
from colossus.policy.recovery import Action
from colossus.spec.units import format_duration
from colossus.twin.book import (
    CHECKPOINT,
    DETECT,
    DETECTING,
    LOST,
    PLANNED,
    PRODUCTIVE,
    RECOMPILE,
    RESTART,
    RESTORE,
    RETURNING,
    WAIT,
    WAITING,
    IncidentRow,
    Outage,
)
from colossus.twin.chance import Chance
from colossus.twin.faults import Fault, draw_faults
from colossus.twin.nodes import REPAIR
from colossus.twin.setting import GRID, Kind, Setting
from colossus.twin.stepping import BACK, FAULT, Stepping


class Corruption(NamedTuple):
    """The state is wrong from step ``at`` on, done at ``struck_s``; ``clean``, of ``since_s``, is the newest one on disk that is not."""

    fault: Fault
    at: float
    struck_s: float
    clean: int
    since_s: float


class Standing(Stepping):
    """From a fault, an order or an outage to the first step after it."""

    def __init__(self, setting: Setting, *, seed: int, is_kept: bool, is_logged: bool) -> None:
        super().__init__(setting, seed=seed, is_kept=is_kept, is_logged=is_logged)
        scenario = setting.scenario
        self.faults = draw_faults(setting.profile, scenario, setting.grounds, seed=seed)
        self.chance = Chance(seed, scenario.recovery)
        self.num_interruptions: dict[str, int] = {}
        self.lost_steps = 0
        self.failed: str | None = None
        self._evicted: int | None = None
        self._history: dict[int, list[float]] = {}
        self._corrupt: list[Corruption] = []
        self._drains = scenario.recovery.drain_after_faults is not None
        self._failed_repair = setting.profile.failed_repair_fraction
        self._idle = setting.profile.idle_fraction
        self._lucks = self.faults.lucks
        self.num_recoveries = 0

    @property
    def last_step(self) -> int:
        """Steps done that are not lost."""
        return int(self.progress.at) if self._outage is None else self._outage.to_step

    @property
    def num_corrupt(self) -> int:
        """Corruptions in the state that nobody has seen."""
        return len(self._corrupt)

    def _stop_for(self, fault: Fault, kind: Kind) -> None:
        """A stop in good order: the state is saved, then the work takes the time that a repair of its class takes."""
        outage = self._stand_saved(kind.cause, fault.repair_s)
        outage.kind, outage.is_planned = fault.kind, True
        self._know(kind.cause)

    def _order(self, why: str, node: int | None = None) -> None:
        """The gang changes by our own decision. Survivors with copies in memory lose the step under way; all others save first."""
        setting, now_s = self.setting, self.kernel.now_s
        if setting.reforms and setting.memory_steps is not None:
            self._close(now_s)
            self.progress.committed(now_s)
            outage = self._stand(why, int(self.progress.at), is_disk=False)
        else:
            outage = self._stand_saved(why, 0.0)
        outage.node = node
        self._know(why)

    def _stand_saved(self, name: str, work_s: float) -> Outage:
        """The gang stands, saves, and the work takes so long."""
        now_s = self.kernel.now_s
        self._close(now_s)
        self.progress.committed(now_s)
        outage = self._stand(name, int(self.progress.at), self.setting.memory_steps is None)
        outage.phase, outage.save_s = WAITING, self.setting.save_s
        outage.saved_s = now_s + outage.save_s
        outage.until_s = outage.saved_s + work_s
        return outage

    def _roll_back(self, fault: Fault, kind: Kind, clean: int, since_s: float, struck_s: float) -> None:
        """The state is known to be wrong: saved ones are tried until one is good. ``clean``: the newest good one; ``since_s``: when it was; ``struck_s``: when it went wrong."""
        now_s, setting = self.kernel.now_s, self.setting
        self._close(now_s)
        saved = self.progress.committed(now_s)
        to_step = min(clean, saved)
        outage = self._stand(kind.cause, to_step, is_disk=True, since_s=since_s)
        self.progress.disk = to_step
        self.num_disk_losses += 1
        outage.kind, outage.node = fault.kind, fault.node
        count = 1 + (saved - to_step) // (self.progress.interval or saved + 1)
        outage.detail = f"wrong for {format_duration(now_s - struck_s)}, {count} saved states in question; "
        tries = rollback_tries(count)
        outage.until_s = now_s + tries * (setting.scenario.recovery.sdc_check_s + setting.restore_disk_s)
        self._know(kind.cause)

    def _black_out(self, until_s: float) -> None:
        """All nodes stand without power until then; copies in memory are gone. What else the gang waited for, it still waits for."""
        now_s, outage = self.kernel.now_s, self._outage
        if outage is None:
            self._close(now_s)
            outage = self._stand(GRID, self.progress.committed(now_s), is_disk=True)
            self.num_disk_losses += 1
        else:
            self._book_down(now_s)
            if not outage.is_disk:
                self._lose_copies(outage)
            self._count(GRID)
            until_s = until_s if outage.phase is RETURNING else max(until_s, outage.until_s)
        outage.kind, outage.reason, outage.is_planned = None, GRID, False
        outage.phase, outage.action, outage.until_s = WAITING, "", until_s
        self._know(GRID)

    def _stand(self, name: str, to_step: int, is_disk: bool, since_s: float | None = None) -> Outage:
        """The gang stands from now on and will go on from ``to_step``; what was done beyond it is lost, ``since_s`` where it is known."""
        now_s, progress = self.kernel.now_s, self.progress
        at = progress.at
        if self.is_logged:
            self._tell_steps(to_step, progress.disk)
        outage = self._outage = Outage(now_s, name, int(at), to_step, is_disk)
        outage.lost_s = lost_s = (at - to_step) * self._pace.productive_s
        self.lost_steps += outage.from_step - to_step
        if self.is_kept:
            self._mark_loss(now_s, to_step, since_s)
        self.book[PRODUCTIVE] -= lost_s
        self.book[LOST] += lost_s
        if self._corrupt:
            self._corrupt = [row for row in self._corrupt if row.at < to_step]
        self.num_interruptions[name] = self.num_interruptions.get(name, 0) + 1
        if self.nodes.since_s != now_s:
            self.nodes.tick(now_s)
        self.nodes.steps = False
        return outage

    def _count(self, name: str) -> None:
        self.num_interruptions[name] = self.num_interruptions.get(name, 0) + 1

    def _know(self, name: str, fault: Fault | None = None) -> None:
        """It takes until ``until_s`` to know what is wrong, or for what was ordered."""
        outage = self._outage
        assert outage is not None
        self._turn = turn = self._turn + 1
        if self.is_logged:
            outage.fault = (name, outage.kind if fault is None else fault.kind, outage.node if fault is None else fault.node)
            if outage.phase is not DETECTING or outage.until_s <= self.kernel.now_s:
                self.log.append(("fault", self.kernel.now_s, 0.0, *outage.fault))
        if self.kernel.fed_s <= outage.until_s:
            self._pass_over(outage.until_s)
        if self.kernel.jump(outage.until_s):
            self._book_down(outage.until_s)
            self._decide(outage)
        else:
            self.kernel.at(outage.until_s, self._on_known, turn, FAULT)

    def _pass_over(self, until_s: float) -> None:
        """Leaves out the faults until then that nothing comes of, because the gang stands."""
        kernel, lucks, idle = self.kernel, self._lucks, self._idle
        place = kernel.fed_place
        while self.faults.times_s[place] <= until_s and lucks[place] >= idle:
            place += 1
            if place == len(lucks):
                break
        kernel.skip_to(place)

    def _again(self, fault: Fault, kind: Kind) -> None:
        """Another fault while the gang stands: the tests that look for the first find it too. On the way back it is from detection on, all over."""
        now_s, outage = self.kernel.now_s, self._outage
        assert outage is not None
        if kind.needs_disk and not outage.is_disk:
            self._lose_copies(outage)
        self._count(kind.cause)
        if outage.phase is RETURNING:
            self._book_down(now_s)
            outage.phase, outage.until_s = DETECTING, now_s + fault.detect_s
            self._know(kind.cause, fault)
        elif self.is_logged:
            outage.echoes += ((now_s, kind.cause, fault.kind, fault.node),)

    def _lose_copies(self, outage: Outage) -> None:
        """The copies in memory that the gang was to go on from are lost as well."""
        outage.is_disk = True
        self.num_disk_losses += 1
        to_step = outage.to_step if outage.saved_s <= self.kernel.now_s else min(self.progress.disk, outage.to_step)
        more = outage.to_step - to_step
        more_s = more * self._pace.productive_s
        self.book[PRODUCTIVE] -= more_s
        self.book[LOST] += more_s
        self.lost_steps += more
        outage.to_step, outage.lost_s = to_step, outage.lost_s + more_s
        if self.is_kept and self.rewinds:
            begun_s, ended_s = self.rewinds[-1]
            self.rewinds[-1] = (max(0.0, begun_s - more * self._pace.step_s - self._blocked_within(more)), ended_s)

    def _on_known(self, turn: int) -> None:
        if turn == self._turn and self._outage is not None:
            self._book_down(self.kernel.now_s)
            self._decide(self._outage)

    def _decide(self, outage: Outage) -> None:
        """What policy does with what is left, and how long that takes."""
        setting, nodes, kernel = self.setting, self.nodes, self.kernel
        nodes.settle(kernel.now_s)
        if self._suspects:
            self._take_out_suspects()
        if outage.saved_s <= kernel.now_s and self.progress.disk < outage.to_step:
            self.progress.disk = outage.to_step
            self.progress.num_saves += 1
        decision = setting.decide(outage.kind, outage.reason, nodes.gang, nodes.spare, nodes.repair)
        action = decision.action
        outage.action, outage.why = action, outage.detail + decision.reason
        if self.is_logged:
            self.log.append(("recovery", kernel.now_s, action.value, decision.reason, decision.num_workers))
        if action is Action.GIVE_UP:
            self._give_up(decision.reason)
            return
        if action is Action.WAIT:
            outage.phase = WAITING
            self._turn += 1
            self._await()
            return
        if nodes.gang != decision.num_workers:
            nodes.tick(kernel.now_s)
            nodes.resize(decision.num_workers)
        self.num_recoveries += 1
        outage.num_workers = decision.num_workers
        is_reform = setting.reforms and action is not Action.RESTART and outage.reason != GRID
        drawn = self.chance.swaps if is_reform else self.chance.starts
        start_s = self.chance.next_of(drawn)
        drawn.pop()
        restore_s = setting.restore_disk_s if outage.is_disk else setting.restore_memory_s
        compile_s = 0.0 if is_reform else setting.compile_s
        outage.plan_s = (start_s, restore_s, compile_s)
        outage.phase = RETURNING
        self._turn = turn = self._turn + 1
        back_s = kernel.now_s + start_s + restore_s + compile_s
        if kernel.fed_s <= back_s:
            self._pass_over(back_s)
        if kernel.jump(back_s):
            self._on_resumed(turn)
        else:
            kernel.at(back_s, self._on_resumed, turn, BACK)

    def _give_up(self, reason: str) -> None:
        self.failed = reason
        self.kernel.clear()

    def _book_down(self, now_s: float) -> None:
        """Gives the time of the standstill up to now to the part it is in."""
        outage = self._outage
        if outage is None or now_s <= self._since_s:
            return
        elapsed_s, parts_s, book = now_s - self._since_s, outage.parts_s, self.book
        self._since_s = now_s
        if outage.phase is RETURNING:
            start_s, restore_s, compile_s = outage.plan_s
            took_s, restored_s, compiled_s = self._book_return(elapsed_s, outage.plan_s)
            outage.plan_s = (start_s - took_s, restore_s - restored_s, compile_s - compiled_s)
            parts_s[2] += took_s
            parts_s[3] += restored_s
            parts_s[4] += compiled_s
            if self.is_logged:
                self.log.append(("return", now_s, (took_s, restored_s, compiled_s), outage.to_step, outage.action, outage.num_workers, outage.is_disk))
        elif outage.phase is DETECTING:
            book[DETECT] += elapsed_s
            parts_s[0] += elapsed_s
            if self.is_logged:
                self.log.append(("fault", now_s, elapsed_s, *outage.fault))
        else:
            saved_s = min(elapsed_s, outage.save_s)
            outage.save_s -= saved_s
            book[CHECKPOINT] += saved_s
            book[PLANNED if outage.is_planned else WAIT] += elapsed_s - saved_s
            parts_s[1] += elapsed_s
            if self.is_logged:
                is_saved = saved_s > 0 and not outage.save_s
                self.log.append(("wait", now_s, saved_s, elapsed_s - saved_s, outage.from_step, outage.why or outage.reason, is_saved, outage.is_planned))
        if outage.echoes:
            self.log.extend(("fault", now_s, now_s - struck_s, *echo) for struck_s, *echo in outage.echoes)
            outage.echoes = ()
        if self.is_kept:
            self._mark(now_s)

    def _book_return(self, elapsed_s: float, plan_s: tuple[float, float, float]) -> tuple[float, float, float]:
        """Gives so much of the way back to its parts, in order; what rounding leaves is of the last."""
        start_s, restore_s, compile_s = plan_s
        took_s = min(elapsed_s, start_s)
        restored_s = min(elapsed_s - took_s, restore_s) if compile_s else elapsed_s - took_s
        compiled_s = elapsed_s - took_s - restored_s if compile_s else 0.0
        book = self.book
        book[RESTART] += took_s
        book[RESTORE] += restored_s
        book[RECOMPILE] += compiled_s
        return took_s, restored_s, compiled_s

    def _on_resumed(self, turn: int) -> None:
        outage = self._outage
        if turn != self._turn or outage is None:
            return
        now_s = self.kernel.now_s
        self._book_down(now_s)
        self._outage = None
        if self.is_kept or self.is_logged:
            self._keep(outage, now_s)
        self._begin(outage.to_step)
        if self.nodes.gang < self.setting.num_gang:
            self._grow()

    @abstractmethod
    def _grow(self) -> None:
        """Takes back nodes that are here again, where that pays."""

    def _keep(self, outage: Outage, now_s: float) -> None:
        row = IncidentRow(
            outage.begun_s, outage.kind, outage.node, outage.action, outage.why, outage.reason, outage.from_step, outage.to_step, outage.lost_s,
            tuple(outage.parts_s), "disk" if outage.is_disk else "ram",
        )  # fmt: skip
        self.rows.append(row)
        if self.is_logged:
            self.log.append(("recovered", now_s, row))

    def _fail(self, node: int, fault: Fault) -> bool:
        nodes, now_s = self.nodes, self.kernel.now_s
        if nodes.place[node] == REPAIR:
            return False
        nodes.tick(now_s)
        was_gang = nodes.fail(node)
        if self._slow and self._slow.pop(node, None) is not None:
            self._is_paced = False
        repair_s, is_thorough = fault.repair_s, False
        if self._drains:
            recovery_scenario = self.setting.scenario.recovery
            times_s = self._history.setdefault(node, [])
            times_s.append(now_s)
            if is_suspect(times_s, now_s=now_s, window_s=recovery_scenario.drain_window_s, num_faults=recovery_scenario.drain_after_faults):
                repair_s, is_thorough = self.chance.one(recovery_scenario.drain_repair), True
                times_s.clear()
        is_mended = is_thorough or fault.repair_luck >= self._failed_repair
        nodes.repair_until(node, now_s + repair_s, is_mended)
        return was_gang

    def _take_out_suspects(self) -> bool:
        """Known slow nodes go into repair, as far as spares fill their places; whether any did."""
        nodes, waiting = self.nodes, self._suspects
        nodes.settle(self.kernel.now_s)
        self._suspects, gone = [], False
        for fault in waiting:
            if fault.node not in self._slow:
                continue
            if nodes.gang + nodes.spare > self.setting.num_gang:
                gone = self._fail(fault.node, fault)
                self._evicted = fault.node
            else:
                self._suspects.append(fault)
        return gone
