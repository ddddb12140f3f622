"""What simulate and sweep share: options, from JOB and MACHINE to a workload, from --scenario and --set to a scenario."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import json_option, runs_option, talk

if TYPE_CHECKING:
    from colossus.plan.question import Asked
    from colossus.plan.search import Question
    from colossus.spec.answer import Choice
    from colossus.spec.machine import Machine
    from colossus.spec.scenario import Scenario
    from colossus.spec.simulation import Simulation
    from colossus.twin.workload import Workload

_PLAN_NAMES = ("chips", "precision", "program", "sequences", "sequence_tokens", "tokens")
_OF_JOB = "job."
_HERE = "this"
# Below such a use of the chips, or above such a batch, useful work alone would mislead.
_LOW_MFU, _MANY_TOKENS = 0.2, 100e6
# Of a machine's nodes, how many are proposed to be spare.
_SPARE_FRACTION = 0.01


def simulation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The job, the machine, the scenario and where results go."""
    options = (
        click.argument("job", metavar="JOB"),
        click.option("--on", "machine", required=True, help="A machine of the catalog (colossus machines), or CHIP*COUNT, e.g. h100-sxm*64, COUNT in chips."),
        click.option("--days", type=float, help="Simulate so many days at most; default the scenario's, 90."),
        click.option("--seed", type=click.IntRange(min=0), help="Chance begins here; the same seed gives the same result, byte for byte."),
        click.option("--scenario", default="default", show_default=True, metavar="NAME|FILE", help="What may happen and what is done about it."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="PATH=VALUE",
            help="Change one value of the scenario, e.g. spares=16, checkpoint.interval=30min, recovery=cold, faults=none; with job. before it, of the job file.",
        ),
        click.option("--layout", metavar="AXES", help="Simulate this layout instead of the plan's best, e.g. tp=8,pp=16; what is not named is the fastest."),
        click.option("--chips", type=click.IntRange(min=1), help="Chips that the job uses; the machine's others are spares."),
        click.option("--precision", help="bfloat16, float8, mxfp8, nvfp4; default bfloat16."),
        click.option("--program", help="Whose efficiency: a training program that runs were published of (megatron-bridge-26.06, torchtitan, maxtext, ...)."),
        click.option("--sequences", type=click.IntRange(min=1), help="Sequences of a step, where JOB is a model; default about 4 M tokens."),
        click.option("--sequence-tokens", type=click.IntRange(min=2), help="Tokens of a sequence, where JOB is a model; default 8192 or the model's most."),
        click.option("--tokens", type=float, help="Tokens to train on; default the job's steps, or 20 for each parameter."),
        runs_option,
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """What is to be simulated: the job as the twin takes it, the machine, and the scenario with what the user set. ``notes``: the plan's, and of spares."""

    workload: Workload
    machine: Machine
    scenario: Scenario
    notes: tuple[str, ...] = ()


def order(job: str, machine: str, options: dict[str, Any]) -> Ordered:
    """Reads all that the user named; a wrong name or value is an error before anything is simulated or written."""
    scenario = scenario_of(options)
    _check_machine(machine)
    asked, choice, notes = _planned(job, machine, options)
    place, workload = asked.question.machine, workload_of(asked, choice)
    return Ordered(workload=workload, machine=place, scenario=scenario, notes=(*notes, *_of_spares(asked.question, workload, scenario)))


def _check_machine(name: str) -> None:
    """Before layouts of it are searched, which takes time and memory with its size."""
    from colossus.catalog.machines import load_machine
    from colossus.spec.errors import CatalogError, Problem, SpecError
    from colossus.spec.scenario import MOST_NODES

    if name == _HERE:
        raise CatalogError("'this' is no machine of the catalog", hint="the twin of this machine plays whole runs: colossus train JOB --on twin:this")
    machine = load_machine(name)
    if machine.num_nodes > MOST_NODES:
        rule = f"has {machine.num_nodes:,} nodes, more than the {MOST_NODES:,} that a simulation plays"
        raise SpecError("simulate", [Problem(path="--on", value=name, rule=rule, hint=f"at most {MOST_NODES * machine.node.num_chips:,} such chips")])


def _of_spares(question: Question, workload: Workload, scenario: Scenario) -> Iterator[str]:
    """Where the job takes every node and faults are waited for: with how many chips it would not."""
    from dataclasses import replace

    from colossus.plan.search import most_chips
    from colossus.spec.scenario import Recovery

    machine, per_node = question.machine, question.machine.node.num_chips
    is_free = workload.num_job_chips <= per_node * (machine.num_nodes - 1)
    is_quiet = scenario.faults == "none" or not scenario.fault_factor
    if is_free or is_quiet or scenario.recovery.kind not in (Recovery.HOT, Recovery.COLD):
        return
    kept = machine.num_nodes - math.ceil(_SPARE_FRACTION * machine.num_nodes)
    fewer = most_chips(replace(question, num_chips=kept * per_node)) if kept else 0
    yield "no node is spare: every loss waits for a repair" + (f"; give --chips {fewer}" if fewer else "")


def doubts(simulation: Simulation) -> list[str]:
    """What keeps a high goodput from being good news, a sentence each: it is of time, and says nothing of how well a step uses chips and tokens."""
    found = []
    flop, peak = simulation.model_flop_per_token, simulation.peak_flop_per_s
    mfu = simulation.tokens_per_step * flop / simulation.step_s / peak if flop and peak else None
    if mfu is not None and mfu < _LOW_MFU:
        found.append(f"Useful is said of time, not of speed: steps use {100 * mfu:.2g} % of the chips' peak (MFU).")
    if simulation.tokens_per_step > _MANY_TOKENS:
        found.append(f"A step takes {simulation.tokens_per_step / 1e6:,.0f} M tokens: whether a model learns from so many at once is not simulated.")
    return found


def scenario_of(options: dict[str, Any], more: tuple[str, ...] = ()) -> Scenario:
    """The scenario with --set, --days, --seed and ``more`` laid over it."""
    from colossus.catalog.scenarios import load_scenario
    from colossus.spec.units import MOST_S

    own = tuple(each for each in options["assignments"] if not each.startswith(_OF_JOB))
    days, seed = options["days"], options["seed"]
    if days is not None and not 0 < days <= MOST_S / 86400:
        from colossus.spec.errors import Problem, SpecError

        rule = f"must be above zero, and at most {MOST_S / 86400:,.0f}, 100 years"
        raise SpecError("simulate", [Problem(path="--days", value=f"{days:g}", rule=rule, hint="e.g. --days 90")])
    named = (*((f"horizon_s={days * 86400!r}",) if days is not None else ()), *((f"seed={seed}",) if seed is not None else ()))
    return load_scenario(options["scenario"], (*own, *named, *more))


def _planned(job: str, machine: str, options: dict[str, Any]) -> tuple[Asked, Choice, Sequence[str]]:
    """The question, the layout that the plan chooses or the user named, and what the plan notes of it."""
    from dataclasses import replace

    from colossus.plan.answer import answer
    from colossus.plan.question import ask
    from colossus.spec.errors import InfeasibleError
    from colossus.spec.plan import Infeasible

    own = options["runs"] / ".cache" / "coefficients.toml"  # as colossus calibrate writes it
    of_job = tuple(each.removeprefix(_OF_JOB) for each in options["assignments"] if each.startswith(_OF_JOB))
    asked = ask(job, machine, assignments=of_job, coefficients=own if own.exists() else None, **{name: options[name] for name in _PLAN_NAMES})
    if options["layout"] is not None:
        return asked, *_named_layout(asked, options["layout"])
    with _waiting(f"choosing the layout on {asked.question.num_chips:,} chips ..."):
        found = answer(asked.question, name=asked.model, total_tokens=asked.total_tokens, top=1, said=asked.notes)
    if isinstance(found, Infeasible):
        raise InfeasibleError(found.reason, hint=found.fit)
    return replace(asked, question=replace(asked.question, num_chips=found.num_chips)), found.best, found.notes


def _waiting(what: str) -> contextlib.AbstractContextManager[object]:
    """Something that turns on a terminal; the search on a million chips takes a minute."""
    console = talk()
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


def _named_layout(asked: Asked, text: str) -> tuple[Choice, Sequence[str]]:
    """A layout as the user named it, the rest of it the fastest, with the plan's notes; refused where a rule or memory stands against it."""
    from colossus.cli.planning import _layout
    from colossus.plan.answer import _cut_of, choice_at
    from colossus.plan.explain import broken_rules, completed, explain
    from colossus.plan.notes import notes
    from colossus.plan.search import estimate
    from colossus.spec.errors import InfeasibleError

    wanted = completed(asked.question, _layout(text, "--layout"))
    if list(broken_rules(asked.question, wanted)):
        raise InfeasibleError(f"--layout {text}: {explain(asked.question, wanted)}")
    candidates = estimate(asked.question, _cut_of(asked.question, wanted))
    if not candidates.fits[0]:
        raise InfeasibleError(f"--layout {text}: {explain(asked.question, wanted)}")
    choice = choice_at(asked.question, candidates, 0, asked.total_tokens)
    return choice, [*asked.notes, *notes(asked.question, candidates, choice)]


def workload_of(asked: Asked, choice: Choice) -> Workload:
    """The job as the twin takes it: steps are whole."""
    from colossus.estimate.parameters import num_parameters
    from colossus.plan.fewer import step_s_on_fewer
    from colossus.twin.workload import Workload

    question, layout = asked.question, choice.layout
    tokens_per_step = question.num_sequences * question.sequence_tokens
    flop_per_s = choice.model_flop_per_s_per_chip * layout.num_chips
    return Workload(
        name=asked.model,
        chip=question.chip,
        num_job_chips=layout.num_chips,
        num_chips_per_replica=layout.pp * layout.cp * layout.tp,
        layout=layout.describe(),
        step_s=choice.step_s,
        parts_s=dict(choice.parts_s),
        tokens_per_step=tokens_per_step,
        num_steps=max(1, round(asked.total_tokens / tokens_per_step)),
        num_parameters=num_parameters(question.card),
        model_flop_per_token=flop_per_s * choice.step_s / tokens_per_step,
        peak_flop_per_s=flop_per_s / choice.mfu_fraction,
        step_s_by_chips=step_s_on_fewer(question, layout),
    )
