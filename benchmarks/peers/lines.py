"""How a benchmark talks to an engine in another process: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

_OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer


def answer(run: Callable[[list[list[int]], int], int], vocab: int, **told: Any) -> None:
    """Says it is ready, then plays each order: ``run(prompts, output tokens)`` returns how many tokens came."""
    say({"ready": True} | told)
    for line in sys.stdin:
        order = json.loads(line)
        chance = random.Random(order["seed"])
        prompts = [[chance.randrange(300, vocab) for _ in range(order["prompt_tokens"])] for _ in range(order["concurrency"])]
        begin_s = time.perf_counter()
        tokens = run(prompts, order["output_tokens"])
        say({"tokens": tokens, "wall_s": time.perf_counter() - begin_s})


def say(data: dict[str, Any]) -> None:
    _OUT.write(json.dumps(data) + "\n")
    _OUT.flush()
