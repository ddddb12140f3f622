"""``colossus sample``: text from a trained model."""

from __future__ import annotations

import os
import sys
from itertools import takewhile
from pathlib import Path

import click

from colossus.cli.common import json_option, print_json, run_argument, talk


@click.command("sample")
@run_argument
@click.argument("prompt")
@click.option("--max-new-tokens", type=click.IntRange(1), default=120, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0 takes the likeliest token each time.")
@click.option("--top-k", type=click.IntRange(1), help="Choose among the k likeliest tokens only.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Choose among the likeliest tokens that hold this probability.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def command(folder: Path, prompt: str, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int, as_json: bool) -> None:
    """Continue PROMPT with the model of RUN (its newest good checkpoint)."""
    from colossus.spec.errors import RunError
    from colossus.spec.run import open_run

    run = open_run(folder)
    if not run.card.exists():
        raise RunError(f"{folder} trained a program, not a language model, and cannot be sampled")
    os.environ.setdefault("JAX_PLATFORMS", {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}[run.load_machine().node.chip.kind])
    from colossus.nn.generate import Sampling, stream
    from colossus.nn.tokenizer_files import end_ids
    from colossus.train.data.tokenizer import end_of_text, load
    from colossus.train.weights import load_trained

    card = run.load_card()
    step, params = load_trained(run)
    tokenizer = load(run.tokenizer)
    tokens = tokenizer.encode(prompt, add_special_tokens=False).ids  # as in training
    if not tokens:
        raise RunError("the prompt is empty", hint="give a word to begin with")
    talk().print(f"model of step {step}, temperature {temperature}, seed {seed}")
    made: list[int] = []
    shown = tokenizer.decode(tokens)
    text = shown
    if not as_json:
        sys.stdout.write(shown)
    ends = end_ids(run.tokenizer) | {tokenizer.token_to_id(end_of_text(tokenizer, run.tokenizer))}
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    new = stream(params, card, tokens, sampling, max_new_tokens=max_new_tokens)
    for token in takewhile(lambda token: token not in ends, new):
        made.append(int(token))
        text = tokenizer.decode(tokens + made)
        if not as_json and not text.endswith("\ufffd"):  # half a character: wait for its other bytes
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    if as_json:
        print_json({"run": str(folder), "step": step, "prompt": prompt, "text": text, "num_new_tokens": len(made)})
    else:
        sys.stdout.write("\n")
