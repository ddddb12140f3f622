"""The closed forms against the real train step, compiled for machines that are not here: FLOP, bytes over each mesh axis, peak memory.

    pip install '.[aot]'
    python benchmarks/read_program.py                # all; or some, by their number: ... 0 5 7

A ratio is the compiled program's figure over the closed form's. Every compiler runs in a process of its own, which has a
time-out (engine/compiler.py), as `colossus plan --read-program` does it. Peak memory of the compiler is that process's.

Writes benchmarks/results/read_program.json.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from common import RESULTS, record, version

from colossus.catalog.models import load_model
from colossus.catalog.targets import load_target
from colossus.cli.program import comparison, parse_layout
from colossus.engine.compiler import MAX_MADE_UP_DEVICES, compile_program, installed
from colossus.estimate.program import read_program
from colossus.plan.program import program_order
from colossus.plan.question import ask
from colossus.spec.errors import EngineError
from colossus.spec.job import Precision
from colossus.spec.layout import Layout
from colossus.spec.program import Compiler, ProgramOrder

# (compiler, model, machine, sequences, tokens of each, layout). The CPU's compiler gets the accelerator's program in float32: it
# has no bfloat16 to send.
CASES: list[tuple[Compiler, str, str, int, int, str]] = [
    ("cpu", "llama-3-8b", "tpu-v5p*64", 64, 8192, "fsdp=64,remat=full"),
    ("cpu", "llama-3-8b", "tpu-v5p*64", 16, 8192, "dp=2,fsdp=8,tp=4,remat=full"),
    ("cpu", "llama-3-8b", "tpu-v5p*64", 32, 8192, "fsdp=16,tp=4,remat=selective"),
    ("cpu", "llama-3-70b", "tpu-v5p*512", 128, 8192, "fsdp=64,tp=8,remat=full,num_microbatches=2"),
    ("cuda", "llama-3-8b", "h100-sxm*64", 64, 8192, "fsdp=64,remat=full"),
    ("cuda", "llama-3-8b", "h100-sxm*64", 32, 8192, "dp=2,fsdp=8,tp=4,remat=selective"),
    ("cuda", "llama-3-70b", "h100-sxm*512", 64, 8192, "fsdp=64,tp=8,remat=full"),
    ("cuda", "llama-3.1-405b", "llama-3-24k", 2048, 8192, "dp=16,fsdp=128,tp=8,remat=full"),
    ("cuda", "llama-2-13b", "a100-80*64", 64, 4096, "dp=4,fsdp=16,remat=full"),
    ("cuda", "llama-3-70b", "b200*128", 64, 8192, "dp=2,fsdp=16,tp=4,remat=full"),
    ("tpu", "llama-3-8b", "tpu-v5p*64", 64, 8192, "fsdp=64,remat=full"),
    ("tpu", "llama-3-8b", "tpu-v5p*16", 16, 4096, "dp=2,fsdp=4,tp=2,remat=full"),
    ("tpu", "llama-3-8b", "tpu-v5e*64", 32, 4096, "fsdp=16,tp=4,remat=full"),
    ("tpu", "llama-3-8b", "tpu-v4*32", 32, 4096, "fsdp=8,tp=4,remat=full"),
]
# Topologies that `colossus plan` does not ask libtpu for, and why it does not: tried with a small step.
UNASKED = {"v6e:2x2": "fsdp=2,tp=2,remat=full", "tpu7x:2x2x1": "fsdp=4,tp=2,remat=full"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, help="which of CASES, then of UNASKED; the others keep what was recorded")
    given = parser.parse_args()
    path = RESULTS / "read_program.json"
    steps = {name_of(case): partial(measured, case) for case in CASES}
    steps |= {f"tpu: llama-91m on {topology}, {text}": partial(unasked, topology, parse_layout(text)) for topology, text in UNASKED.items()}
    known = json.loads(path.read_text())["programs"] if given.numbers and path.is_file() else {}
    for name in [list(steps)[number] for number in given.numbers] or steps:
        known[name] = steps[name]()
        print(name, json.dumps(known[name]), flush=True)
    ordered = {name: known[name] for name in steps if name in known}
    record("read_program", {"libtpu": version("libtpu"), "cuda_plugin": version("jax-cuda13-plugin"), "programs": ordered})


def name_of(case: tuple[Any, ...]) -> str:
    compiler, model, machine, sequences, tokens, layout = case
    return f"{compiler}: {model} for {machine}, {sequences} x {tokens}, {layout}"


def measured(case: tuple[Compiler, str, str, int, int, str]) -> dict[str, Any]:
    compiler, model, machine, sequences, tokens, text = case
    if not installed(compiler):
        return {"refused": "colossus[aot] is not installed"}
    layout = parse_layout(text)
    question = ask(model, machine, chips=layout.num_devices, sequences=sequences, sequence_tokens=tokens).question
    order = program_order(question, layout, compiler, MAX_MADE_UP_DEVICES, load_target(question.chip) if compiler == "cuda" else None)
    return against(order.model_copy(update={"precision": Precision.FLOAT32}) if compiler == "cpu" else order)


def unasked(topology: str, layout: Layout) -> dict[str, Any]:
    """A step of 91 M parameters on a topology by libtpu's own name."""
    if not installed("tpu"):
        return {"refused": "colossus[aot] is not installed"}
    order = ProgramOrder(card=load_model("llama-91m"), layout=layout, num_sequences=8, sequence_tokens=1024, platform="tpu", compiler="tpu", topology=topology)
    return against(order)


def against(order: ProgramOrder) -> dict[str, Any]:
    """The compiled step over the closed forms, or why there is none."""
    try:
        made = compile_program(order, timeout_s=900)
    except EngineError as error:
        return {"refused": str(error)}
    reading = read_program(made.text, order, made.account, made.errors)
    return {
        "ratios": {name: found / expected if expected else None for name, found, expected in comparison(order, reading)},
        "figures": {name: [found, expected] for name, found, expected in comparison(order, reading)},
        "compile_s": made.account.compile_s,
        "compiler_memory_bytes": made.account.compiler_memory_bytes,
        "warnings": reading.warnings,
    }


if __name__ == "__main__":
    main()
