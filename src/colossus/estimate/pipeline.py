"""What a pipeline's schedule costs: stages that wait, and microbatches held at once.

With f, b, w the time of one microbatch in one stage forward, backward for its input's gradient and for its weights', p stages,
m microbatches, v virtual stages:

    schedule   idle                               held by the first stage     source
    1f1b       (p - 1)(f + b + w) / v             p, or p + (p - 1)/v         Narayanan et al. 2021, 2104.04473, 2.2
    gpipe      (p - 1)(f + b + w)                 m                           Huang et al. 2019, 1811.06965
    zb-h1      (p - 1)(f + b - w)                 p                           Qi et al. 2024, 2401.10241, table 1
    zb-h2      (p - 1)(f + b - 2w)                2p - 1                      the same
    zb-v       as zb-h2; 0 where f = b = w        p                           the same, section 6
    v-half     half of 1f1b's                     (p + 2)/2                   Qi et al. 2024, 2405.15362, table 1
    v-min      two thirds of 1f1b's               (p + 4)/3                   the same
    dualpipe   (p/2 - 1)(f + 2b - w)              p + 1, and weights twice    DeepSeek-V3, 2412.19437, table 2, its F&B as f + b + w

The last four put the first and the last stage on one chip. Ignored: what V-min loses where f, b and w differ, and the split
backward's own launches.
"""

from __future__ import annotations

import numpy as np

from colossus.estimate.shape import Cut, Numbers
from colossus.spec.layout import Schedule

_ORDER = list(Schedule)
_GPIPE, _DUALPIPE, _ZB_H2 = (_ORDER.index(schedule) for schedule in (Schedule.GPIPE, Schedule.DUALPIPE, Schedule.ZB_H2))
# Factors of f, b and w, and of p - 1.
_IDLE = {
    Schedule.ONE_F_ONE_B: (1, 1, 1),
    Schedule.GPIPE: (1, 1, 1),
    Schedule.ZB_H1: (1, 1, -1),
    Schedule.ZB_H2: (1, 1, -2),
    Schedule.ZB_V: (1, 1, -2),
    Schedule.V_HALF: (1 / 2, 1 / 2, 1 / 2),
    Schedule.V_MIN: (2 / 3, 2 / 3, 2 / 3),
    Schedule.DUALPIPE: (1, 2, -1),
}
_FACTORS = np.array([_IDLE[schedule] for schedule in _ORDER], float)
# Microbatches held: a factor of p, and a constant.
_HELD = {Schedule.ZB_H2: (2, -1), Schedule.V_HALF: (1 / 2, 1), Schedule.V_MIN: (1 / 3, 4 / 3), Schedule.DUALPIPE: (1, 1)}
_HOLDING = np.array([_HELD.get(schedule, (1, 0)) for schedule in _ORDER], float)
_FOLDED = np.array([schedule in (Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE) for schedule in _ORDER])


def place(schedule: Schedule) -> int:
    """The number that stands for a schedule in ``Cut.schedule``."""
    return _ORDER.index(schedule)


def is_dualpipe(cut: Cut) -> Numbers:
    return (_place(cut) == _DUALPIPE) & (cut.pp > 1)


def is_folded(cut: Cut) -> Numbers:
    """Whether one chip has both the first and the last stage."""
    return _FOLDED[_place(cut)] & (cut.pp > 1)


def bubble_s(cut: Cut, forward_s: Numbers, input_s: Numbers, weight_s: Numbers) -> Numbers:
    """Seconds that a stage waits in a step; the arguments are those of one microbatch in one stage.

    Gaps are filled with weights' gradients, of which there are no more than microbatches.
    """
    factors = _FACTORS[_place(cut)]
    steps = np.where(_place(cut) == _DUALPIPE, np.maximum(cut.pp / 2 - 1, 0.0), cut.pp - 1)
    filling = np.minimum(steps * (factors[..., 0] - factors[..., 2]), cut.num_microbatches)
    idle_s = steps * (factors[..., 0] * (forward_s + weight_s) + factors[..., 1] * input_s) - filling * weight_s
    return np.maximum(idle_s, 0.0) / cut.virtual_stages


def in_flight(cut: Cut, behind: Numbers = 0.0) -> Numbers:
    """Microbatches that the stage ``behind`` the first holds at once, in units of what its layers keep of one."""
    factors = _HOLDING[_place(cut)]
    folded = is_folded(cut)
    plain = factors[..., 0] * cut.pp + factors[..., 1] - np.where(folded, 0.0, behind * np.where(_place(cut) == _ZB_H2, 2.0, 1.0))
    interleaved = cut.pp + (cut.pp - 1 - 2 * behind) / cut.virtual_stages
    held = np.where(_place(cut) == _GPIPE, cut.num_microbatches, np.where(cut.virtual_stages > 1, interleaved, plain))
    return np.where(cut.pp > 1, np.clip(held, 1.0, cut.num_microbatches), 1.0)


def _place(cut: Cut) -> np.ndarray:
    return np.asarray(cut.schedule, int)
