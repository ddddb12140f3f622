"""Who is where: gang, spare, in repair; counted, with the time that each state lasted."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf

from colossus.spec.simulation import NodeState

GANG, SPARE, REPAIR = 0, 1, 2


class Nodes:
    """``num_nodes`` that the job may use, the first ``num_gang`` of them its gang. Cost grows with changes, not with nodes."""

    __slots__ = ("gang", "lemons", "next_back_s", "num_nodes", "place", "repair", "returns", "seconds", "since_s", "spare", "spares", "steps")

    def __init__(self, num_nodes: int, num_gang: int, lemons: Iterable[int] = ()) -> None:
        self.num_nodes = num_nodes
        self.lemons = set(lemons)
        self.returns: list[tuple[float, int, bool]] = []
        self.next_back_s = inf
        self.place = bytearray([GANG]) * num_gang + bytearray([SPARE]) * (num_nodes - num_gang)
        self.spares = list(range(num_nodes - 1, num_gang - 1, -1))
        self.gang, self.spare, self.repair = num_gang, num_nodes - num_gang, 0
        self.steps = False
        self.seconds = [0.0, 0.0, 0.0, 0.0]  # working, standing, spare, repair
        self.since_s = 0.0

    def tick(self, now_s: float) -> None:
        """Books the time up to now; before every change."""
        elapsed_s = now_s - self.since_s
        if elapsed_s:
            seconds = self.seconds
            seconds[0 if self.steps else 1] += elapsed_s * self.gang
            seconds[2] += elapsed_s * self.spare
            seconds[3] += elapsed_s * self.repair
            self.since_s = now_s

    def seconds_at(self, now_s: float) -> list[float]:
        """What the seconds are up to now, without booking them."""
        elapsed_s = now_s - self.since_s
        working, standing, spare, repair = self.seconds
        gang_s = elapsed_s * self.gang
        return [working + gang_s * self.steps, standing + gang_s * (not self.steps), spare + elapsed_s * self.spare, repair + elapsed_s * self.repair]

    def fail(self, node: int) -> bool:
        """Takes a node into repair; whether it was of the gang. One in repair stays there."""
        was = self.place[node]
        if was == REPAIR:
            return False
        self.place[node] = REPAIR
        self.repair += 1
        if was == GANG:
            self.gang -= 1
            return True
        self.spare -= 1
        return False

    def repair_until(self, node: int, back_s: float, is_mended: bool) -> None:
        """A node that failed will be back then, as a spare. ``is_mended``: no lemon any more."""
        heappush(self.returns, (back_s, node, is_mended))
        self.next_back_s = self.returns[0][0]

    def settle(self, now_s: float) -> None:
        """Takes in the nodes that are back by now; before anything that counts nodes."""
        returns = self.returns
        while returns and returns[0][0] <= now_s:
            back_s, node, is_mended = heappop(returns)
            self.tick(back_s)
            self.place[node] = SPARE
            self.repair -= 1
            self.spare += 1
            self.spares.append(node)
            if is_mended:
                self.lemons.discard(node)
        self.next_back_s = returns[0][0] if returns else inf

    def resize(self, num_gang: int) -> None:
        """Fills the gang from spares, or lets nodes of it go as spares."""
        while self.gang < num_gang:
            node = self.spares.pop()
            if self.place[node] == SPARE:  # else it failed while it waited, or is listed twice
                self.place[node] = GANG
                self.gang += 1
                self.spare -= 1
        while self.gang > num_gang:
            node = self.place.rfind(GANG)
            self.place[node] = SPARE
            self.gang -= 1
            self.spare += 1
            self.spares.append(node)

    def node_s(self, num_machine_nodes: int, wall_s: float) -> dict[NodeState, float]:
        """Node seconds by state of all the machine's nodes."""
        told = dict(zip((NodeState.WORKING, NodeState.STANDING, NodeState.SPARE, NodeState.REPAIR), self.seconds, strict=True))
        return told | {NodeState.UNUSED: (num_machine_nodes - self.num_nodes) * wall_s}
