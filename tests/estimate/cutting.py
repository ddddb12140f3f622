"""Cuts for tests of the closed forms."""

from __future__ import annotations

import numpy as np

from colossus.estimate.shape import Cut


def cut(**changes: float) -> Cut:
    """8 replicas of 8 microbatches of one sequence, one layout."""
    sizes = {
        "tp": 1, "cp": 1, "pp": 1, "ep": 1, "dp": 8, "virtual_stages": 1, "microbatch_sequences": 1, "num_microbatches": 8, "sequence_tokens": 4096,
        "recompute": 0, "selective": 0, "weights_sharded": 0, "optimizer_sharded": 1, "is_low_precision": 0,
    }  # fmt: skip
    return Cut(**{name: np.array([float(value)]) for name, value in (sizes | changes).items()})
