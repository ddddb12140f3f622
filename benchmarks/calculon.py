"""The planner beside Calculon (Isaev et al. 2023), in one process on one core: layouts a second, and errors on published A100 runs.

    git clone https://github.com/calculon-ai/calculon /tmp/peers/calculon     # caa4b11; it wants pandas
    python benchmarks/calculon.py --calculon /tmp/peers/calculon

Speed: both search the same models on the same machines. Calculon's own loop runs its executions in random order for --seconds;
those it refuses count too, and refusing is cheaper than estimating. Ours is the whole search, the median of 7.

Errors: published runs of plain GPT on A100-80GB. Calculon has no key for whether a bias and its activation are fused, whether
the sum of gradients is hidden, and which of its two systems (a100_80g, a100_80e) a run had: all eight are tried, and the one
with the smallest mean error stands for it. It has no ZeRO 3: those rows, in a group apart, are the nearest that it has, ZeRO 1.
Ours has seen these rows; fits that have not follow: without half of each group's rows, and without the groups.

Writes benchmarks/results/calculon.json.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import record, spread

from colossus.catalog.measured import Coefficients, load_coefficients
from colossus.catalog.published import read_published
from colossus.plan.calibrate import estimate_cases, fit
from colossus.plan.published import Case, case_of
from colossus.plan.question import ask
from colossus.plan.search import search

# name: (our model, Calculon's, chips, sequences a step)
JOBS = {
    "Megatron 1T on 3,072 A100": ("megatron-1t", "megatron-1T", 3072, 3072),
    "GPT-3 175B on 4,096 A100": ("gpt-3-175b", "gpt3-175B", 4096, 4096),
}
ROUNDS = 7
PIPELINED = ("megatron-sc21", "vtrain-measured")
GROUPS = {"3D parallel": PIPELINED, **{name: (name,) for name in PIPELINED}, "ZeRO 3 as ZeRO 1": ("mosaicml-llm-foundry",)}
SYSTEMS = ("a100_80g", "a100_80e")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calculon", type=Path, required=True, help="a clone of github.com/calculon-ai/calculon")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long Calculon searches each model")
    parser.add_argument("--no-fits", action="store_true", help="leave out the fits without these rows (4 minutes)")
    given = parser.parse_args()
    if not (given.calculon / "calculon" / "llm").is_dir():
        raise SystemExit(f"{given.calculon} holds no Calculon: git clone https://github.com/calculon-ai/calculon {given.calculon}")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.path.insert(0, str(given.calculon))
    peer = Peer(given.calculon)
    speed: dict[str, Any] = {name: speeds(peer, *job, seconds=given.seconds) for name, job in JOBS.items()}
    cases = [case_of(run) for run in read_published() if run.text("tier") == "A"]
    groups = {name: [case for case in cases if case.run.group in members and case.chip == "a100-80"] for name, members in GROUPS.items()}
    speed["published rows, alone"] = {"calculon": {"layouts_per_s": rate_alone(peer, groups["3D parallel"])}}
    print(record("calculon", {"speed": speed, "errors": errors(peer, cases, groups, with_fits=not given.no_fits)}).read_text())


class Peer:
    """Calculon, imported from its clone."""

    def __init__(self, folder: Path) -> None:
        import calculon
        from calculon.llm import Llm, OptimalExecution

        self.folder, self.llm, self.optimal = folder, Llm, OptimalExecution
        self._read = calculon.io.read_json_file
        self.systems = {name: calculon.System(self._read(str(folder / "systems" / f"{name}.json"))) for name in SYSTEMS}

    def model(self, name: str) -> Any:
        return self.llm.Application(self._read(str(self.folder / "models" / f"{name}.json")))

    def searches(self, model: str, chips: int, sequences: int) -> list[tuple[Any, ...]]:
        """Arguments of each call that its command llm-optimal-execution makes."""
        app, system, llm = self.model(model), self.systems[SYSTEMS[0]], self.llm
        calls = []
        for tp in llm.get_all_tensor_parallelisms(chips, app.hidden, app.attn_heads):
            for pp in llm.get_all_pipeline_parallelisms(chips, tp, app.num_blocks):
                dp = llm.get_data_parallelism(chips, tp, pp)
                batch = self.optimal.get_batch_size(dp, sequences)
                chunks = llm.get_valid_pipeline_interleavings(app.num_blocks, pp) if batch else ()
                sharded, sums = ([True, False] if dp > 1 else [False]), ("ar", "p2p_rs_ag", "rs_ag")
                for chunk, recompute, sharding, how in itertools.product(chunks, ("full", "attn_only", "none"), sharded, sums):
                    calls.append(
                        (1, False, chips, sequences, "float16", app, system, tp, pp, dp, chunk, batch, recompute, sharding, how, [True], False, True, True)
                    )
        return calls

    def step_s(self, case: Case, setting: tuple[str, bool, bool]) -> float | None:
        """The estimated step of a published run; None where it is refused."""
        system, is_fused, hides_sums = setting
        cut, tp, pp, dp = case.cut, int(case.cut.tp), int(case.cut.pp), int(case.cut.dp)
        card = case.card
        model = self.llm.Application(
            {
                "hidden": card.model_dim, "feedforward": card.ffn_dim, "seq_size": int(cut.sequence_tokens),
                "attn_heads": card.num_heads, "attn_size": card.head_dim, "num_blocks": card.num_layers,
            }
        )  # fmt: skip
        execution = {
            "num_procs": tp * pp * dp, "tensor_par": tp, "pipeline_par": pp, "data_par": dp,
            "tensor_par_net": 0, "pipeline_par_net": 1, "data_par_net": 1,
            "batch_size": round(cut.num_microbatches * cut.microbatch_sequences * dp), "microbatch_size": int(cut.microbatch_sequences),
            "datatype": "float16", "fused_activation": is_fused, "attention_type": "multihead",
            "activation_recompute": "full" if cut.recompute else ("attn_only" if cut.selective else "none"),
            "pipeline_interleaving": int(cut.virtual_stages), "optimizer_sharding": bool(dp > 1 and (cut.optimizer_sharded or cut.weights_sharded)),
            "tensor_par_comm_type": "ar", "tensor_par_overlap": "none", "seq_par_ag_redo": False, "data_par_overlap": hides_sums and dp > 1,
            "weight_offload": False, "activations_offload": False, "optimizer_offload": False, "training": True,
        }  # fmt: skip
        times = [self._run(model, system, execution | {"data_par_net": net}) for net in (0, 1)]
        return min((seconds for seconds in times if seconds), default=None)

    def _run(self, model: Any, system: str, execution: dict[str, Any]) -> float | None:
        try:
            run = self.llm(model, logging.Logger("calculon"))
            place = self.systems[system]
            run.compile(place, self.llm.Execution.from_json(execution))
            run.run(place)
        except (self.llm.Error, AssertionError):
            return None
        return float(run.get_total_time())


def speeds(peer: Peer, model: str, theirs: str, chips: int, sequences: int, *, seconds: float) -> dict[str, Any]:
    """Layouts a second of both."""
    question = ask(model, f"dgx-a100*{chips}", sequences=sequences, sequence_tokens=2048).question
    times = [timed(lambda: search(question)) for _ in range(ROUNDS + 1)][1:]
    candidates = search(question)
    calls = peer.searches(theirs, chips, sequences)
    random.Random(0).shuffle(calls)
    num_run = num_refused = num_calls = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds and num_calls < len(calls):
        _, count, _, refused, *_ = peer.optimal.search(False, *calls[num_calls])
        num_run, num_refused, num_calls = num_run + count, num_refused + refused, num_calls + 1
    took = time.perf_counter() - begin
    ours, other = len(candidates) / spread(times)["median"], num_run / took
    return {
        "colossus": {"num_layouts": len(candidates), "num_fitting": int(candidates.fits.sum()), "search_s": spread(times), "layouts_per_s": ours},
        "calculon": {"num_layouts": num_run, "num_refused": num_refused, "calls": f"{num_calls} of {len(calls)}", "s": took, "layouts_per_s": other},
        "times_as_many": ours / other,
    }


def timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def rate_alone(peer: Peer, cases: Sequence[Case]) -> float:
    """Layouts a second of Calculon's alone, without its search, where it accepts nearly all."""
    took = timed(lambda: [peer.step_s(case, (SYSTEMS[0], False, False)) for case in cases])
    return 2 * len(cases) / took  # each on both networks


def errors(peer: Peer, everything: Sequence[Case], groups: dict[str, list[Case]], *, with_fits: bool) -> dict[str, Any]:
    """Of each group: both tools' errors over the rows that each runs."""
    fitted = load_coefficients()
    found: dict[str, Any] = {}
    for name, cases in groups.items():
        found[name] = {"rows": len(cases), "calculon": calculon_errors(peer, cases), "colossus": summary(cases, ours(cases, fitted))}
    if with_fits:
        for name, fits in unseen_fits(everything).items():
            for group, cases in groups.items():
                if set(GROUPS[group]) <= set(PIPELINED):
                    found[group][f"colossus, {name}"] = summary(cases, [estimate for case in cases for estimate in ours([case], fits(case))])
    return found


def ours(cases: Sequence[Case], coefficients: Coefficients) -> list[float | None]:
    return list(estimate_cases(cases, coefficients).step_s)


def calculon_errors(peer: Peer, cases: Sequence[Case]) -> dict[str, Any]:
    """Its best of the settings that a row does not tell."""
    tried = {setting: summary(cases, [peer.step_s(case, setting) for case in cases]) for setting in itertools.product(SYSTEMS, (False, True), (False, True))}
    setting = min(tried, key=lambda one: tried[one]["mean_error_fraction"])
    return tried[setting] | {"setting": dict(zip(("system", "fused_activation", "data_par_overlap"), setting, strict=True))}


def unseen_fits(everything: Sequence[Case]) -> dict[str, Callable[[Case], Coefficients]]:
    """Which coefficients estimate a case that they have not seen: of fits without its half of the rows, and without the groups."""
    nothing = replace(load_coefficients(), factors={}, spread={}, seen={})
    place = {case.run.id: index % 2 for index, case in enumerate(case for case in everything if case.run.group in PIPELINED)}
    halves = [fit([case for case in everything if place.get(case.run.id) != half], nothing).coefficients for half in (0, 1)]
    without = fit([case for case in everything if case.run.id not in place], nothing).coefficients
    return {"half of the rows unseen": lambda case: halves[place[case.run.id]], "both groups unseen": lambda _: without}


def summary(cases: Sequence[Case], estimates: Sequence[float | None]) -> dict[str, Any]:
    """Sizes of the errors, their median as bias, and rank correlation of estimated and measured time."""
    from scipy.stats import spearmanr

    both = np.array([(seconds, case.step_s) for case, seconds in zip(cases, estimates, strict=True) if seconds is not None])
    error = both[:, 0] / both[:, 1] - 1
    return {
        "refused": len(cases) - len(both),
        "mean_error_fraction": float(np.mean(np.abs(error))),
        "median_error_fraction": float(np.median(np.abs(error))),
        "p90_error_fraction": float(np.percentile(np.abs(error), 90)),
        "bias_fraction": float(np.median(error)),
        "spearman": float(spearmanr(both[:, 0], both[:, 1]).statistic),
    }


if __name__ == "__main__":
    main()
