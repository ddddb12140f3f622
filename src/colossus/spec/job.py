"""What a user asks for: the job file, one table a concern."""

from __future__ import annotations

from datetime import date, time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from colossus.spec.base import Spec, read_toml, set_path
from colossus.spec.layout import AxisSize, Remat
from colossus.spec.model import Count, ModelCard, Positive
from colossus.spec.units import Bytes, Seconds

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Precision(StrEnum):
    """float32 throughout, or bfloat16 compute over float32 master weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class DataSpec(Spec):
    """Where the text comes from and how it becomes tokens.

    ``sources``: ``package:NAME`` (text files of an installed package), ``stdlib:python`` (this interpreter's own library),
    or paths, globs and directories of .txt .md .rst .py ..., .jsonl[.gz|.zst], .parquet. ``tokenizer``: None trains a
    byte-level BPE of ``vocab_size`` on the corpus; else a tokenizer.json or a folder that holds one.
    """

    sources: Annotated[list[str], Field(min_length=1)]
    text_field: str = "text"
    tokenizer: str | None = None
    vocab_size: Annotated[int, Field(ge=257)] | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    shard_bytes: Bytes = 64 * 2**20


class BatchSpec(Spec):
    """How much one optimizer step sees, over all devices; ``num_microbatches`` cuts it in time, not in effect."""

    num_sequences: Count
    sequence_tokens: Annotated[int, Field(ge=2)] | None = None
    num_microbatches: AxisSize = 1


class OptimizerKind(StrEnum):
    ADAMW = "adamw"
    MUON = "muon"


class Schedule(StrEnum):
    """Learning rate after warm-up: half a cosine, warm-up-stable-decay, or flat."""

    COSINE = "cosine"
    WSD = "wsd"
    CONSTANT = "constant"


class OptimizerSpec(Spec):
    """Optax AdamW, or Muon for matrices with AdamW for the rest. Norm gains, biases and vectors are not decayed."""

    kind: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: Positive = 1e-3
    final_learning_rate_fraction: Fraction = 0.1
    schedule: Schedule = Schedule.COSINE
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: Positive = 1e-8
    clip_norm: Positive | None = 1.0


class GuardSpec(Spec):
    """When a step counts as bad: a non-finite loss or gradient, or a loss above the running mean by ``spike_sigma``.

    A bad step changes no weight; after ``max_bad_steps`` in a row the run goes back to the last good checkpoint.
    """

    spike_sigma: Positive | None = 8.0
    window_steps: Count = 50
    max_bad_steps: Count = 3


class CheckpointSpec(Spec):
    """Steps between checkpoints (None: the policy decides from measured save time and failure rate) and which to keep.

    ``ram_interval_steps``: steps between copies of the state in the node's memory, which outlive a process but not
    the node; None lets the policy decide, 0 keeps none.
    """

    interval_steps: Count | None = None
    ram_interval_steps: Annotated[int, Field(ge=0)] | None = None
    keep_last: Count = 2
    keep_every_steps: Count | None = None


class RecoverySpec(Spec):
    """What the supervisor may do when workers die or hang. ``max_restarts`` None: as often as it takes, while each brings progress."""

    max_restarts: Annotated[int, Field(ge=0)] | None = None
    max_restarts_without_progress: Count = 3
    allow_fewer_workers: bool = True
    num_standbys: Annotated[int, Field(ge=0)] = 1
    heartbeat_timeout_s: Annotated[Seconds, Field(gt=0)] = 8.0
    startup_timeout_s: Annotated[Seconds, Field(gt=0)] = 600.0
    coordinator_port: Annotated[int, Field(ge=1, le=65535)] | None = None


class EvaluationSpec(Spec):
    """Validation loss every ``interval_steps`` and at the end, over ``num_batches``: None is all of a program's, 8 of a corpus'."""

    interval_steps: Count | None = None
    num_batches: Count | None = None


class LayoutSpec(Spec):
    """Mesh axes the user fixes; the rest is chosen by the plan. ``remat`` None: by the memory at hand."""

    dp: AxisSize | None = None
    fsdp: AxisSize | None = None
    tp: AxisSize | None = None
    remat: Remat | None = None


class TrackingSpec(Spec):
    """Extra writers, beside events.jsonl: TensorBoard files in the run folder, a Weights & Biases project."""

    tensorboard: bool = False
    wandb_project: str | None = None


class TrainJob(Spec):
    """Train one network: a decoder of the catalog (``model``), of the user's own shape, or any JAX ``program``.

    ``model``: a catalog name, a Hugging Face folder (training goes on from its weights), or a table of a ModelCard.
    ``program``: ``module:function`` or ``file.py:function`` that returns a colossus Program (init, loss, data);
    ``options`` are handed to it: whatever TOML can hold.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_steps: Count
    num_workers: Count | None = None
    model: ModelCard | str | None = None
    program: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    data: DataSpec | None = None
    batch: BatchSpec
    precision: Precision = Precision.FLOAT32
    optimizer: OptimizerSpec = OptimizerSpec()
    guard: GuardSpec = GuardSpec()
    layout: LayoutSpec = LayoutSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    recovery: RecoverySpec = RecoverySpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _check(self) -> TrainJob:
        if (self.model is None) == (self.program is None):
            raise ValueError("give exactly one of model (a decoder) and program (any JAX network)")
        if self.model is not None and (self.data is None or self.batch.sequence_tokens is None):
            raise ValueError("a model needs [data] sources and batch.sequence_tokens")
        if self.program is not None and self.data is not None:
            raise ValueError("a program brings its own data; drop [data] or hand paths over in [options]")
        if self.optimizer.warmup_steps >= self.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below num_steps {self.num_steps}; also --set optimizer.warmup_steps={self.num_steps // 5}"
            )
        if self.batch.num_sequences % self.batch.num_microbatches:
            raise ValueError(f"batch.num_sequences {self.batch.num_sequences} must be a multiple of batch.num_microbatches {self.batch.num_microbatches}")
        return self

    @field_validator("options")
    @classmethod
    def _fits_toml(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if bad := _beyond_toml(value):
                raise ValueError(f"{name} holds {bad}, which TOML cannot; leave it out, or give a string, number, bool, list or table")
        return options

    @property
    def tokens_per_step(self) -> int | None:
        """Training tokens of one optimizer step, None where a program's examples are no token sequences."""
        length = self.batch.sequence_tokens
        return None if length is None else self.batch.num_sequences * length


def load_job(path: Path, assignments: tuple[str, ...] = ()) -> TrainJob:
    """Reads a job file and applies ``--set`` assignments; raises SpecError with every problem at once."""
    data = read_toml(path)
    for assignment in assignments:
        set_path(data, assignment)
    return TrainJob.from_data(data, origin=str(path))


def _beyond_toml(value: Any) -> str | None:
    """The first part of ``value`` that no TOML file can hold, in words."""
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        keys = [key for key in value if not isinstance(key, str)] if isinstance(value, dict) else []
        return f"the key {keys[0]!r}" if keys else next(filter(None, map(_beyond_toml, parts)), None)
    return None if isinstance(value, str | bool | int | float | date | time) else repr(value)
