"""How often to save, to disk and to memory, and which checkpoints to keep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, sqrt

from colossus.spec.units import format_duration

# Share of the step time that copies to memory, or saves more frequent than the optimum, may cost.
SMALL_OVERHEAD_FRACTION = 0.01
# Work that nobody wants to lose even on a machine that hardly ever fails, as long as saving costs no more than the above.
LONGEST_INTERVAL_S = 600.0
# Where no interval is given the first save to disk comes early, because one must be measured before an interval can be chosen.
FIRST_SAVE_STEP = 10
# What the prior is worth against failures seen. Small, since machines differ in it by orders of magnitude.
PRIOR_FAILURES = 1e-3


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Steps between saves, the share of time that saves, lost work and restarts then cost, and why."""

    interval_steps: int
    overhead_fraction: float
    reason: str


def interval_steps(*, save_s: float, blocked_s: float, step_s: float, mtbf_s: float, restart_s: float) -> Decision:
    """Steps between checkpoints on disk that waste the least time.

    Saves are asynchronous, so that the cost of one is ``blocked_s``, the time the step loop stands still; ``save_s``,
    start to committed, only bounds the interval from below, so that saves never overlap. The optimum is daly()'s.
    Expected waste per time, to first order: blocked_s / W + (W / 2 + save_s + restart_s) / mtbf_s, since a failure
    loses half an interval and what was not committed yet. Ignored: that background writing slows steps.
    """
    optimum_s = daly_s(cost_s=blocked_s, mtbf_s=mtbf_s)
    patience_s = max(LONGEST_INTERVAL_S, blocked_s / SMALL_OVERHEAD_FRACTION)
    steps = max(round(min(optimum_s, patience_s) / step_s), ceil(save_s / step_s), 1)
    window_s = steps * step_s
    waste = blocked_s / window_s + (window_s / 2 + save_s + restart_s) / mtbf_s
    if window_s < save_s + step_s:
        why = "a save takes that long, and saves must not overlap"
    elif optimum_s > patience_s:
        why = f"the optimum, {format_duration(optimum_s)}, risks more work than {format_duration(patience_s)} for nothing"
    else:
        why = f"the optimum for {format_duration(blocked_s)} blocked per save and a failure that needs it every {format_duration(mtbf_s)}"
    return Decision(interval_steps=steps, overhead_fraction=min(waste, 1.0), reason=f"every {format_duration(window_s)}: {why}")


def daly_s(*, cost_s: float, mtbf_s: float) -> float:
    """Compute time between checkpoints that minimises the time to solution.

    W = sqrt(2 C M) (1 + x / 3 + x^2 / 9) - C with x = sqrt(C / 2M), for C < 2M: J. T. Daly, "A higher order estimate of
    the optimum checkpoint interval for restart dumps", FGCS 22 (2006), eq. 37; its first term is J. W. Young's,
    "A first order approximation to the optimum checkpoint interval", CACM 17 (1974). The restart time drops out.
    Beyond C = 2M, Daly's W = M is cut at the value 4C/9 that the formula ends with, so that W never falls as M grows.
    """
    if cost_s >= 2 * mtbf_s:
        return min(mtbf_s, 4 * cost_s / 9)
    ratio = sqrt(cost_s / (2 * mtbf_s))
    return sqrt(2 * cost_s * mtbf_s) * (1 + ratio / 3 + ratio**2 / 9) - cost_s


def ram_interval_steps(*, copy_s: float, step_s: float, mtbf_s: float | None = None) -> int:
    """Steps between copies to the node's memory, such that copying takes at most 1 % of the step time.

    ``mtbf_s``: between failures that these copies heal, where it is known: no more often than wastes least (daly_s).
    """
    least = max(1, ceil(copy_s / (SMALL_OVERHEAD_FRACTION * step_s)))
    return least if mtbf_s is None else max(least, round(daly_s(cost_s=copy_s, mtbf_s=mtbf_s) / step_s))


def expected_mtbf_s(*, prior_mtbf_s: float, num_failures: int, elapsed_s: float) -> float:
    """Mean time between failures, from a prior and what was seen.

    The mean of Gamma-Poisson: (k M + T) / (k + n), where the prior M weighs k = 1e-3 failures: n failures in T count
    for themselves almost at once. Without a failure it stays at the prior or at the time survived, if that is longer.
    """
    posterior_s = (PRIOR_FAILURES * prior_mtbf_s + elapsed_s) / (PRIOR_FAILURES + num_failures)
    return min(posterior_s, max(prior_mtbf_s, elapsed_s))


def expendable(steps: Iterable[int], *, keep_last: int, keep_every: int | None) -> list[int]:
    """The checkpoints to delete: all but the newest ``keep_last`` and the multiples of ``keep_every``."""
    ordered = sorted(set(steps))
    recent = set(ordered[-max(keep_last, 1) :])
    return [step for step in ordered if step not in recent and not (keep_every and step % keep_every == 0)]
