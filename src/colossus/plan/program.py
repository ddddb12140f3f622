"""Which program of the trainer's is compiled to check a plan: the layout it can run, and the machine as the compilers name it."""

from __future__ import annotations

from math import gcd

import numpy as np

from colossus.plan.answer import layout_of
from colossus.plan.search import Question, search
from colossus.spec.answer import PlannedLayout
from colossus.spec.cuts import check_layout
from colossus.spec.errors import InfeasibleError, Problem, SpecError
from colossus.spec.job import OptimizerSpec, Precision
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard, untrainable
from colossus.spec.program import Compiler, Platform, ProgramOrder

# TPUs whose programs are read right, with the dims of their slices. Of the others libtpu's compiler dies (v7), or its program holds
# products more than once (v6e): their program is the CPU's.
TPU_DIMS = {"tpu-v4": 3, "tpu-v5p": 3, "tpu-v5e": 2}


def trainable_layout(question: Question) -> Layout:
    """The fastest layout of the plan's that the trainer can run: dp, fsdp and tp alone. InfeasibleError where there is none."""
    if problems := untrainable(question.card):
        raise SpecError("--read-program", problems)
    candidates = search(question)
    order = candidates.order()
    cut = candidates.cut
    runs = (cut.pp == 1) & (cut.cp == 1) & (cut.ep == 1) & ((cut.weights_sharded == 1) | (cut.dp == 1))
    runs = runs & (cut.optimizer_offload + cut.activation_offload == 0)
    for index in order[np.broadcast_to(runs, cut.tp.shape)[order]]:
        layout = as_layout(layout_of(candidates.at(int(index))[0]), question.card)
        if not check_layout(question.card, layout, question.num_sequences, question.sequence_tokens):
            return layout
    raise InfeasibleError(
        f"no layout of dp, fsdp and tp alone fits {question.num_chips} chips, and the trainer has no other axes",
        hint="--read-layout dp=..,fsdp=..,tp=.. compiles one all the same; or --chips, or more --sequences",
    )


def as_layout(planned: PlannedLayout, card: ModelCard) -> Layout:
    """A plan's ZeRO 3 is fsdp, as far as that cuts the model dim evenly; the copies beyond, and HSDP's groups, are dp."""
    fsdp = gcd(planned.dp // planned.num_replica_groups, card.model_dim) if planned.zero_stage == 3 else 1
    return Layout(dp=planned.dp // fsdp, fsdp=fsdp, tp=planned.tp, remat=planned.remat, num_microbatches=planned.num_microbatches)


def program_order(question: Question, layout: Layout, compiler: Compiler, most_devices: int, target: str | None = None) -> ProgramOrder:
    """The order for a question's step. A compiler that has too few devices gets fewer copies (dp): a device's work stays the same."""
    check_trainable(question, layout)
    small = fewer_copies(layout, most_devices) if compiler == "cpu" else layout
    kind = question.machine.node.chip.kind
    platform: Platform = "gpu" if kind == "accelerator" else kind
    return ProgramOrder(
        card=question.card,
        layout=small,
        num_sequences=question.num_sequences * small.dp // layout.dp,
        sequence_tokens=question.sequence_tokens,
        precision=Precision.FLOAT32 if question.precision == "float32" else Precision.BFLOAT16,
        optimizer=OptimizerSpec(),
        platform=platform,
        compiler=compiler,
        topology=None if compiler == "cpu" else topology(question.chip, question.machine.node.num_chips, layout.num_devices),
        target=target,
    )


def check_trainable(question: Question, layout: Layout) -> None:
    """SpecError with everything in the model, the machine or the batch that the trainer cannot do as laid out."""
    problems = untrainable(question.card) or check_layout(question.card, layout, question.num_sequences, question.sequence_tokens)
    if layout.num_devices != question.num_chips:
        rule = f"dp x fsdp x tp must be the {question.num_chips} devices asked for"
        problems = [*problems, Problem(path="layout", value=str(layout.num_devices), rule=rule, hint=f"--chips {layout.num_devices}")]
    if problems:
        raise SpecError("--read-program", problems)


def fewer_copies(layout: Layout, most_devices: int) -> Layout:
    """The layout with as many copies as fit ``most_devices``; at least two where there were several."""
    inner = layout.fsdp * layout.tp
    fitting = [dp for dp in range(1, layout.dp + 1) if layout.dp % dp == 0 and dp * inner <= most_devices]
    if not fitting or (layout.dp > 1 and fitting[-1] == 1):
        raise InfeasibleError(
            f"{layout.describe()}: the CPU's compiler makes up at most {most_devices} devices, and one copy takes {inner}",
            hint="install the chip's own compiler: colossus[aot]",
        )
    return layout.model_copy(update={"dp": fitting[-1]})


def topology(chip: str, chips_per_node: int, num_devices: int) -> str:
    """A machine of so many devices: ``v5p:8x8x8`` for TPUs, slices x hosts x chips for GPUs."""
    if chip not in TPU_DIMS:
        per_node = min(chips_per_node, num_devices)
        return f"1x{num_devices // per_node}x{per_node}"
    num_dims = TPU_DIMS[chip]
    sides = sorted(torus(num_devices, num_dims), reverse=num_dims == 3)  # a host of v4 and v5p is 2x2x1
    return f"{chip.removeprefix('tpu-')}:{'x'.join(map(str, sides))}"


def torus(num_chips: int, num_dims: int) -> tuple[int, ...]:
    """Sides whose product is the number of chips, as equal as they can be."""
    if num_dims == 1:
        return (num_chips,)
    root = round(num_chips ** (1 / num_dims))
    side = next(size for size in range(root, 0, -1) if num_chips % size == 0)
    return (side, *torus(num_chips // side, num_dims - 1))
