"""One replica of a synchronous job on a machine that fails: what happens, what ``policy`` decides about it, what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossus.policy.health import should_evict, should_grow
from colossus.policy.recovery import Action
from colossus.spec.faults import Effect
from colossus.twin.book import (
    DETECT,
    LOST,
    PRODUCTIVE,
    WAITING,
)
from colossus.twin.faults import Fault
from colossus.twin.nodes import GANG, REPAIR, SPARE
from colossus.twin.setting import Kind, Setting
from colossus.twin.standing import Corruption, Standing
from colossus.twin.stepping import BACK, FAULT, LIMIT

if TYPE_CHECKING:
    from colossus.twin.power import Limit


class Job(Standing):
    """Plays one replica to its end or the horizon."""

    def __init__(self, setting: Setting, *, seed: int, limits: Sequence[Limit] = (), is_kept: bool = False, is_logged: bool = False) -> None:
        super().__init__(setting, seed=seed, is_kept=is_kept, is_logged=is_logged)
        self.limits = limits
        self.num_faults = [0] * len(setting.profile.classes)
        self._kinds = setting.kinds

    def run(self) -> None:
        setting, kernel = self.setting, self.kernel
        horizon_s = setting.scenario.horizon_s
        kernel.feed(self.faults.times_s, self._on_fault)
        if setting.scenario.stragglers.diurnal_fraction:
            self._on_half_day(None)
        for limit in self.limits:
            kernel.at(limit.start_s, self._on_limit, limit, LIMIT)
            if not limit.is_outage:
                kernel.at(limit.end_s, self._on_limit, None, LIMIT)
        self._begin(0)
        kernel.run(horizon_s)
        if not self.is_done:
            end_s = self.kernel.now_s if self.failed else horizon_s
            self._close(end_s)
            self._book_down(end_s)
            self._tell_steps()
        self.nodes.settle(self.wall_s)
        self.nodes.tick(self.wall_s)
        if self.is_kept:
            self._mark(self.wall_s, is_due=True)

    def _on_fault(self, place: int) -> None:
        if self._outage is not None and self._lucks[place] >= self._idle:
            return  # a job that does not run has no bugs; and what stands still may not break
        fault = self.faults[place]
        kind = self._kinds[fault.kind]
        if self.nodes.next_back_s <= self.kernel.now_s:
            self.nodes.settle(self.kernel.now_s)
        if not kind.is_of_job:
            was = self.nodes.place[fault.node]
            if was == REPAIR or (was == SPARE and fault.idle_luck >= self._idle) or (fault.is_lemons and fault.node not in self.nodes.lemons):
                return
            self.num_faults[fault.kind] += 1
            if kind.effect is Effect.SLOW:
                self._slow_down(fault, was == GANG)
                return
            if kind.effect is Effect.CORRUPT:
                self._corrupts(fault, was == GANG)
                return
            if not self._take_down(fault, kind.group):
                return
        else:
            self.num_faults[fault.kind] += 1
        if self._outage is not None:
            self._again(fault, kind)
        elif kind.effect is Effect.PLANNED:
            self._stop_for(fault, kind)
        else:
            self._strike(fault, kind)

    def _take_down(self, fault: Fault, size: int) -> bool:
        """A group of nodes goes into repair; whether the gang lost any."""
        if size <= 1:
            return self._fail(fault.node, fault)
        first = fault.node // size * size
        hit = [self._fail(node, fault) for node in range(first, min(first + size, self.nodes.num_nodes))]
        return any(hit)

    def _on_return(self, turn: int) -> None:
        if turn != self._awaited:
            return
        now_s, outage = self.kernel.now_s, self._outage
        self.nodes.settle(now_s)
        if outage is not None and outage.phase is WAITING and outage.action is Action.WAIT:
            self._book_down(now_s)
            self._decide(outage)
        elif outage is None and self._suspects:
            self._evict()
        elif outage is None and self.nodes.gang < self.setting.num_gang:
            self._grow()
            if self._outage is None:
                self._await()

    def _slow_down(self, fault: Fault, is_gang: bool) -> None:
        """A chip is slower until it is repaired, or swapped out."""
        kind = self._kinds[fault.kind]
        if not is_gang:
            self._take_down(fault, kind.group)
            return
        fast_s = self.kernel.now_s + fault.repair_s
        slower, later_s = self._slow.get(fault.node, (0.0, 0.0))
        self._slow[fault.node] = (max(kind.slowdown_fraction, slower), max(fast_s, later_s))
        self._repace()
        self.kernel.at(fast_s, self._on_fast, fault.node, BACK)
        scenario = self.setting.scenario.recovery
        swap_s = scenario.swap.mean_s if self.setting.reforms else scenario.start.mean_s + scenario.compile.mean_s
        if scenario.evict_slow and should_evict(slowdown_fraction=kind.slowdown_fraction, expected_s=kind.mean_repair_s, swap_s=swap_s):
            self.kernel.at(self.kernel.now_s + self.chance.one(scenario.evict_detect), self._on_evict, fault, FAULT)

    def _on_fast(self, node: int) -> None:
        if node in self._slow and self._slow[node][1] <= self.kernel.now_s:
            del self._slow[node]
            self._repace()

    def _on_evict(self, fault: Fault) -> None:
        """The slow node is known: out with it, now where the job runs and a spare is at hand, else with the next standstill or return."""
        if fault.node in self._slow:
            self._suspects.append(fault)
            if self._outage is None:
                self._evict()

    def _evict(self) -> None:
        if self._take_out_suspects():
            self._order("evicted", self._evicted)
        elif self._suspects:
            self._await()

    def _corrupts(self, fault: Fault, is_gang: bool) -> None:
        """The state is wrong from now on and nobody knows, until it shows or a check finds it."""
        if not is_gang or self._outage is not None:
            return
        now_s = self.kernel.now_s
        self._close(now_s)
        clean, at = self.progress.committed(now_s), self.progress.at
        since_s = now_s - (at - clean) * self._pace.step_s - self._blocked_within(at - clean)
        self._corrupt.append(Corruption(fault, at, now_s, clean, since_s))
        self._tell_steps(clean, is_end=False)
        every_s = self.setting.scenario.recovery.sdc_check_interval_s
        found_s = fault.detect_s if every_s is None else min(fault.detect_s, fault.check_luck * every_s)
        self.kernel.at(now_s + found_s, self._on_corruption, fault, FAULT)

    def _on_corruption(self, fault: Fault) -> None:
        found = next((row for row in self._corrupt if row.fault is fault), None)
        if found is None:
            return  # what was corrupt has been thrown away since
        if self._outage is not None:  # known once the gang is back
            self.kernel.at(self.kernel.now_s + 60.0, self._on_corruption, fault, FAULT)
            return
        self.nodes.settle(self.kernel.now_s)
        self._fail(fault.node, fault)
        self._roll_back(fault, self._kinds[fault.kind], found.clean, found.since_s, found.struck_s)

    def _strike(self, fault: Fault, kind: Kind) -> None:
        """The gang dies or hangs, and goes on from the newest copy that is left."""
        now_s, setting = self.kernel.now_s, self.setting
        self._close(now_s)
        to_step, is_disk = self.progress.committed(now_s), True
        if not kind.needs_disk and setting.memory_steps is not None:
            copied = self.progress.in_memory(setting.memory_steps)
            to_step, is_disk = max(copied, to_step), copied < to_step
        if not (self.is_logged or self._corrupt or self._suspects) and self._is_over(fault, kind, to_step, is_disk):
            return
        outage = self._stand(kind.cause, to_step, is_disk)
        outage.kind, outage.node = fault.kind, None if kind.is_of_job else fault.node
        outage.until_s = now_s + fault.detect_s
        self.num_disk_losses += kind.needs_disk
        self._know(kind.cause)

    def _is_over(self, fault: Fault, kind: Kind, to_step: int, is_disk: bool) -> bool:
        """The whole standstill at once, where nothing comes before its end and no log tells its parts: the same as one thing after the other, in half the time."""
        setting, nodes, kernel, now_s = self.setting, self.nodes, self.kernel, self.kernel.now_s
        if nodes.gang + nodes.spare < setting.num_gang:
            return False
        drawn = self.chance.swaps if setting.reforms else self.chance.starts
        plan_s = (self.chance.next_of(drawn), setting.restore_disk_s if is_disk else setting.restore_memory_s, 0.0 if setting.reforms else setting.compile_s)
        known_s = now_s + fault.detect_s
        back_s = known_s + plan_s[0] + plan_s[1] + plan_s[2]
        if kernel.fed_s <= back_s:
            self._pass_over(back_s)
        if not kernel.jump(back_s):
            return False
        drawn.pop()
        at, book = self.progress.at, self.book
        lost_s = (at - to_step) * self._pace.productive_s
        if self.is_kept:
            self._mark_loss(now_s, to_step)
        book[PRODUCTIVE] -= lost_s
        book[LOST] += lost_s
        book[DETECT] += known_s - now_s
        took_s = self._book_return(back_s - known_s, plan_s)
        self.lost_steps += int(at) - to_step
        self.num_disk_losses += kind.needs_disk
        self.num_recoveries += 1
        self.num_interruptions[kind.cause] = self.num_interruptions.get(kind.cause, 0) + 1
        if nodes.since_s != now_s:
            nodes.tick(now_s)
        nodes.steps = False
        if nodes.next_back_s <= known_s:
            nodes.settle(known_s)
        decision = setting.decide(fault.kind, kind.cause, nodes.gang, nodes.spare, nodes.repair)
        if nodes.gang != decision.num_workers:
            nodes.tick(known_s)
            nodes.resize(decision.num_workers)
        if self.is_kept:
            node = None if kind.is_of_job else fault.node
            parts_s = (known_s - now_s, 0.0, *took_s)
            source = "disk" if is_disk else "ram"
            self.rows.append((now_s, fault.kind, node, decision.action, decision.reason, kind.cause, int(at), to_step, lost_s, parts_s, source))
            self._mark(back_s)
        self._begin(to_step)
        return True

    def _grow(self) -> None:
        """Nodes are back: a gang that shrank takes them where that pays."""
        setting, nodes = self.setting, self.nodes
        possible = nodes.gang + nodes.spare
        size = setting.num_gang if possible >= setting.num_gang else setting.smaller(possible)
        rest_s = self.progress.remaining_s(self.num_steps, self._pace.step_s)
        if should_grow(num_workers=nodes.gang, num_possible=size, expected_s=min(rest_s, setting.mtbf_s), reform_s=setting.scenario.recovery.swap.mean_s):
            self._order("grown")

    def _on_limit(self, limit: Limit | None) -> None:
        """The site may draw less, or all it needs again."""
        if limit is not None and limit.is_outage:
            self._black_out(limit.end_s)
            return
        self._close(self.kernel.now_s)
        self._book_down(self.kernel.now_s)
        if self.is_kept:
            self._mark(self.kernel.now_s, is_due=True)
        self._speed = 1.0 if limit is None else limit.speed_fraction
        self._repace()
