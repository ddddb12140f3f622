"""A job small enough to be killed often: a linear model whose batches take a moment to come, so that steps have a length."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from colossus.train.program import ArrayDataset, Program

JOB = {
    "name": "linear",
    "num_steps": 160,
    "num_workers": 2,
    "batch": {"num_sequences": 16},
    "optimizer": {"learning_rate": 0.02, "warmup_steps": 0},
    "checkpoint": {"interval_steps": 20, "ram_interval_steps": 3},
    "recovery": {"heartbeat_timeout_s": 4.0},
}


class Paced:
    """The dataset at a pace of ``pause_s`` a batch."""

    def __init__(self, inner: ArrayDataset, pause_s: float) -> None:
        self._inner, self._pause_s = inner, pause_s
        self.num_validation_batches = inner.num_validation_batches
        self.validation_batch = inner.validation_batch

    def batch(self, step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(self._pause_s)
        return self._inner.batch(step, rows)


def program(num_sequences: int, seed: int, pause_s: float = 0.03, fail_at_init: bool = False, poison_from: int = -1) -> Program:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 32)).astype(np.float32)
    data = {"x": x, "y": np.tanh(x @ rng.normal(size=(32, 8))).astype(np.float32)}
    if fail_at_init:
        raise ValueError("the lab's refrigerator is empty")

    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (32, 8)), "bias": jnp.zeros(8)}

    def loss(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["w"] + params["bias"]) - batch["y"]) ** 2), {}

    return Program(init=init, loss=loss, dataset=Paced(ArrayDataset(train=data, validation=data, num_examples=num_sequences, seed=seed), pause_s))
