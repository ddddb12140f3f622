"""Our engine without HTTP, for the side-by-side: python benchmarks/peers/serve_ours.py MODEL [--weights int8] [--cache bfloat16]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lines import answer

from colossus.serve.engine import Engine
from colossus.serve.model import open_model
from colossus.serve.options import CachePrecision, EngineOptions, WeightPrecision
from colossus.serve.request import Request, Sampling


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--cache", default="float32")
    parser.add_argument("--max-running", type=int, default=32)
    a = parser.parse_args()
    options = EngineOptions(
        model=a.model,
        weights=WeightPrecision(a.weights),
        cache=CachePrecision(a.cache),
        max_running=a.max_running,
        max_sequence_tokens=512,
        prefix_caching=False,
    )
    model = open_model(a.model)
    engine = Engine(model, options)
    engine.warm_up(lambda text: None)
    number = 0

    def run(prompts: list[list[int]], output_tokens: int) -> int:
        nonlocal number
        for prompt in prompts:
            number += 1
            engine.add(Request(id=str(number), prompt=tuple(prompt), sampling=Sampling(max_tokens=output_tokens, temperature=0.0)))
        tokens = 0
        while engine.has_work:
            outputs = engine.step()
            tokens += sum(len(output.tokens) for output in outputs)
            for output in outputs:
                assert output.error is None, output.error
        return tokens

    answer(run, model.card.vocab_size)


main()
