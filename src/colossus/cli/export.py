"""``colossus export``: a trained model as others read it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from colossus.cli.common import json_option, paper, print_json, run_argument


@click.command("export")
@run_argument
@click.option("--to", "target", type=click.Path(path_type=Path), required=True, help="Folder to write; must not hold anything yet.")
@json_option
def command(folder: Path, target: Path, as_json: bool) -> None:
    """Write the model of RUN as a Hugging Face folder: config.json, safetensors, the tokenizer and what belongs to it."""
    from colossus.spec.errors import RunError
    from colossus.spec.run import open_run

    run = open_run(folder)
    if not run.card.exists():
        raise RunError(f"{folder} trained a program, not a language model; its weights are in {run.checkpoints}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from colossus.nn.hf_export import export_folder
    from colossus.train.weights import load_trained

    step, params = load_trained(run)
    export_folder(target, run.load_card(), params, run.tokenizer)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    if as_json:
        print_json({"run": str(folder), "step": step, "folder": str(target), "files": files})
        return
    paper().print(f"{target}: the model of step {step}")
    for name, size in files.items():
        paper().print(f"  {name}  {size:,} bytes")
    paper().print(f'read it with: transformers.AutoModelForCausalLM.from_pretrained("{target}")')
