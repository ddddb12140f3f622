"""What is said beside a plan: how far to trust it, what a count counted, batches too small, memory nearly full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from colossus.catalog.nodes import load_node_entry, node_names
from colossus.plan.search import Candidates, Question, most_chips, search
from colossus.report.plan_words import count
from colossus.spec.answer import Choice
from colossus.spec.units import format_quantity

# From this share of a chip's memory on a plan is told to be tight: the worst estimate of a published peak was off by about as much as is left.
_TIGHT = 0.92
# Tokens of a step for each chip below which a larger batch is proposed.
_FEW_TOKENS = 512


def notes(question: Question, candidates: Candidates, first: Choice) -> list[str]:
    """All that is worth saying of an answer and its first choice."""
    return [*_of_the_estimate(question), *_of_the_batch(question), *_of_the_count(question), *_of_the_memory(question, candidates, first)]


def _of_the_estimate(question: Question) -> list[str]:
    known = question.coefficients.knows(question.program.name, chip=question.chip, precision=question.precision)
    name = question.program.name
    notes = [f"{name}: how well that program does on {question.chip}, as fitted on published runs; --program names another"] if known else []
    if not known:
        notes.append(
            f"estimates were fitted on no run of {name} or its kin on {question.chip} in {question.precision}: what programs and chips have in common is assumed; trust them less"
        )
    if question.coefficients.own:
        notes.append(f"coefficients of your own are in use, {question.coefficients.own}")
    spare = question.machine.num_chips - question.num_chips
    if question.is_whole and spare:
        notes.append(f"{spare:,} of {question.machine.num_chips:,} chips are left over, as spares: {_why_no_more(question)}")
    if question.changes:
        notes.append(f"what if {' and '.join(map(str, question.changes))}: the machine as it is takes {_plain_step(question)} a step")
    if question.precision != "bfloat16":
        notes.append("MFU is over the 16-bit peak")
    return notes


def _of_the_batch(question: Question) -> Iterator[str]:
    """Sequences longer than the model was made for, and steps too small for the machine."""
    most, tokens = question.card.max_sequence_tokens, question.num_sequences * question.sequence_tokens / question.num_chips
    if question.sequence_tokens > most:
        yield f"sequences of {question.sequence_tokens:,} tokens are longer than the {most:,} that the model is made for"
    if tokens < _FEW_TOKENS:
        more = -(-_FEW_TOKENS * question.num_chips // question.sequence_tokens)
        yield f"a step has only {tokens:,.0f} tokens for each chip: a batch of {more:,} sequences or more (--sequences) uses them better"


def _of_the_count(question: Question) -> Iterator[str]:
    """``gb200-nvl72*8`` are 8 chips: said wherever a node's name was counted, which may have meant nodes or racks."""
    kind, star, _ = question.machine.name.partition("*")
    if not star or kind not in node_names():
        return
    machine, per_node = question.machine, question.machine.node.num_chips
    domain = load_node_entry(kind).domain
    most = max(per_node, domain.num_chips if domain and domain.num_torus_dims is None else 0)
    whole = f"{machine.num_chips:,} such domains of {most} would be {kind}*{machine.num_chips * most}"
    yield f"{machine.name} counts chips: {count(machine.num_chips, 'chip')} in {count(machine.num_nodes, 'node')} of {per_node}; {whole}"


def _of_the_memory(question: Question, candidates: Candidates, first: Choice) -> Iterator[str]:
    """A plan that nearly fills its chips, and the fastest that leaves room."""
    room = question.device.memory_bytes
    if first.memory_bytes_per_chip <= _TIGHT * room:
        return
    roomy = candidates.step_s[candidates.fits & (candidates.memory_bytes <= _TIGHT * room)]
    other = f"the fastest within {_TIGHT:.0%} takes {roomy.min() / first.step_s - 1:.1%} longer" if len(roomy) else "no layout leaves more"
    yield f"fills {first.memory_bytes_per_chip / room:.0%} of a chip's memory, which real allocators may not allow; {other}"


def _why_no_more(question: Question) -> str:
    most = most_chips(replace(question, num_chips=question.machine.num_chips))
    return "batch and layers do not cut over more" if most <= question.num_chips else f"batch and layers cut worse over more, up to {most:,}"


def _plain_step(question: Question) -> str:
    candidates = search(replace(question, changes=()))
    order = candidates.order()
    return format_quantity(float(candidates.step_s[order[0]]), "s") if len(order) else "more memory than it has and no time at all: nothing fits"
