"""A decoder of ours as a Program: loss over tokens, and its corpus."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax

from colossus.nn import decoder
from colossus.nn.compute import Compute
from colossus.nn.sharding import param_axes
from colossus.spec.job import TrainJob
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard
from colossus.train.data import open_dataset
from colossus.train.program import Program


def language_program(job: TrainJob, card: ModelCard, layout: Layout, corpus: Path, start: Path | None = None) -> Program:
    """Trains ``card`` on the tokens in ``corpus``; ``start``: a Hugging Face folder whose weights it begins with."""
    assert job.batch.sequence_tokens is not None
    dataset = open_dataset(corpus, sequence_tokens=job.batch.sequence_tokens, num_sequences=job.batch.num_sequences, seed=job.seed, verify=False)
    compute = Compute(precision=job.precision, remat=layout.remat)
    return Program(
        init=partial(decoder.init_params, card),
        loss=partial(token_loss, card=card, compute=compute),
        dataset=dataset,
        axes=param_axes(card),
        start=None if start is None else partial(read_params, start, card),
        is_language_model=True,
    )


def token_loss(params: Any, batch: Any, *, card: ModelCard, compute: Compute) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``batch``: (tokens (B, T), targets (B, T)). The parts beside cross-entropy are reported as metrics."""
    tokens_bt, targets_bt = batch
    loss, parts = decoder.loss(params, tokens_bt, targets_bt, card, compute=compute)
    return loss, {name: value for name, value in parts.items() if card.moe is not None or name != "cross_entropy"}


def read_params(folder: Path, card: ModelCard, placed: Any) -> Any:
    """Parameters from a Hugging Face folder, each device reading its own part."""
    from colossus.nn.hf import load_params

    readers = load_params(folder, card, read=lambda reader: reader)
    return jax.tree.map(lambda sharding, reader: jax.make_array_from_callback(reader.shape, sharding, reader), placed, readers)
