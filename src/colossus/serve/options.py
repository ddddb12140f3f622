"""What an engine is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class WeightPrecision(StrEnum):
    """Numbers that the weights of the layers and of the head are kept in; norms stay float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"  # symmetric, a scale for each group of inputs and each output; inputs are quantized the same way, step by step


class CachePrecision(StrEnum):
    """Numbers that keys and values are kept in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"  # symmetric, a scale for each token and head


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """One engine's model, numbers and limits.

    :param model: a Hugging Face folder or a GGUF file (a run of ours is exported to a folder first).
    :param max_sequence_tokens: prompt and answer together; None takes the model's own limit.
    :param max_running: requests in one step at most.
    :param max_step_tokens: the token budget of one step, shared by decoding requests and chunks of prompts; see ``policy.batching.step_budget``.
    :param kv_bytes: of the cache; None takes what ``max_running`` requests of full length need, at most an eighth of a CPU host's free memory,
        half of a free accelerator's, down to a power of two of pages.
    :param host_memory_bytes: what this process may use of the machine's memory, where a control group grants less than all.
    :param max_fused_steps: decode steps in one program at most.
    :param num_draft_tokens: guessed by prompt lookup for each request and step; 0 turns speculation off.
    :param policy: order of waiting requests: fcfs, priority, shortest, fair.
    :param tp: devices that share each layer.
    :param processes: that hold those devices, equally many each.
    """

    model: Path
    weights: WeightPrecision = WeightPrecision.FLOAT32
    cache: CachePrecision = CachePrecision.FLOAT32
    max_sequence_tokens: int | None = None
    max_running: int = 64
    max_step_tokens: int = 512
    kv_bytes: int | None = None
    host_memory_bytes: int | None = None
    prefix_caching: bool = True
    max_fused_steps: int = 8
    num_draft_tokens: int = 0
    policy: str = "fcfs"
    tp: int = 1
    processes: int = 1
    seed: int = 0
