"""What a step takes when data-parallel replicas are gone: the same batch over those that are left."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from colossus.plan.answer import _cut_of
from colossus.plan.search import Question, estimate
from colossus.spec.answer import PlannedLayout

# A gang with more replicas gone than this waits rather than plans; beyond, the time goes as the replicas.
_MOST_GONE = 64


def step_s_on_fewer(question: Question, layout: PlannedLayout) -> dict[int, float]:
    """Chips -> s of a step, for one replica fewer up to 64 or all but one; sizes whose state does not fit are left out.

    Microbatches stay whole: the replica with most of them sets the pace, ceil(batch / replicas left) each.
    """
    left = np.arange(layout.dp - 1, max(0, layout.dp - 1 - _MOST_GONE), -1, dtype=float)
    if not len(left):
        return {}
    one = _cut_of(question, layout)
    wide = {each.name: np.full(len(left), float(getattr(one, each.name)[0])) for each in fields(one)}
    num_microbatches = np.ceil(question.num_sequences / layout.num_microbatch_sequences / left)
    candidates = estimate(question, replace(one, **wide | {"dp": left, "num_microbatches": num_microbatches}))
    per_replica = layout.num_chips // layout.dp
    return {int(replicas) * per_replica: float(step_s) for replicas, step_s, fits in zip(left, candidates.step_s, candidates.fits, strict=True) if fits}
