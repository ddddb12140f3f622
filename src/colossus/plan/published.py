"""From a published row to what the formulas take: the model, the layout, the machine and the program it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from colossus.catalog.machines import load_machine
from colossus.catalog.measured import Coefficients, Program, program_of
from colossus.catalog.models import load_model
from colossus.catalog.nodes import load_node_entry
from colossus.catalog.published import PublishedRun, our_word
from colossus.estimate.device import device_of, holding_of, is_low_precision, profile_of, value_bytes
from colossus.estimate.footprint import Holding
from colossus.estimate.pipeline import place
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Shape
from colossus.spec.errors import DataError
from colossus.spec.layout import Schedule
from colossus.spec.machine import Machine
from colossus.spec.model import Activation, ModelCard, MoeCard

_SCHEDULES = (
    ("zbv|zb-?v", Schedule.ZB_V),
    ("v-?half", Schedule.V_HALF),
    ("v-?min", Schedule.V_MIN),
    ("zero-?bubble|zbb|zb-?h1", Schedule.ZB_H1),
    ("dualpipe", Schedule.DUALPIPE),
    ("gpipe", Schedule.GPIPE),
)
# Sequences of a microbatch where a table gives none and no pipeline asks for small ones.
_USUAL_MICROBATCH = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A published run in our terms, with what was measured: ``step_s`` always, ``memory_bytes`` where given."""

    run: PublishedRun
    card: ModelCard
    shape: Shape
    cut: Cut
    device: Device
    chip: str
    precision: str
    program: Program
    step_s: float
    memory_bytes: float | None

    @property
    def is_incomplete(self) -> bool:
        """Whether its table leaves something out that was assumed here."""
        return self.run.text("tier") == "B"

    @property
    def says_recompute(self) -> bool:
        return self.run.text("recompute") != ""

    def profile(self, coefficients: Coefficients) -> Profile:
        return profile_of(coefficients, chip=self.chip, precision=self.precision, program=self.program.name, flash_attention=self.program.flash_attention)

    def holding(self, coefficients: Coefficients) -> Holding:
        return holding_of(coefficients, chip=self.chip, precision=self.precision, program=self.program.name)


def case_of(run: PublishedRun) -> Case:
    """Raises DataError with the reason where a row cannot be run."""
    try:
        return _case(run)
    except (ValueError, ArithmeticError) as error:
        raise DataError(f"row {run.id}: its figures contradict each other: {' '.join(str(error).split())[:300]}") from None


def _case(run: PublishedRun) -> Case:
    if run.text("task") not in ("", "pretrain", "sft"):
        raise DataError(f"row {run.id}: a {run.text('task')} run trains few of its weights; estimates are for full training")
    card = card_of(run)
    node = our_word("accelerators", run.text("accelerator"))
    if node is None:
        raise DataError(f"row {run.id}: accelerator {run.text('accelerator')!r} is not in the catalog", hint="published/words.toml lists what is")
    precision = _word(run, "precisions", "precision")
    program = program_of(f"{run.text('framework')}; {run.text('note')}", run.text("date"))
    chip, machine = load_node_entry(node).chip, _machine(node, our_word("networks", run.text("interconnect")))
    memory = run.get("peak_mem_gib")
    return Case(
        run=run,
        card=card,
        shape=Shape.of(card),
        cut=cut_of(run, card, program, precision),
        device=device_of(machine, chip, precision, round(run.number("n_accel"))),
        chip=chip,
        precision=precision,
        program=program,
        step_s=measured_step_s(run),
        memory_bytes=None if memory is None else memory * 2**30,
    )


def _word(run: PublishedRun, table: str, column: str) -> str:
    """A cell in our terms; what no pattern knows is no guess."""
    word = our_word(table, run.text(column))
    if word is None:
        raise DataError(f"row {run.id}: {column} {run.text(column)!r} is not known", hint=f"published/words.toml, table {table}, lists what is")
    return word


@cache
def _machine(node: str, network_gbit_per_s: str | None) -> Machine:
    """Many nodes of a kind; how many does not matter, since a row's own count is in its cut."""
    machine = load_machine(node)
    if network_gbit_per_s is None or machine.scale_out is None:
        return machine
    rate = machine.scale_out.bandwidth_bytes_per_s_per_chip.model_copy(update={"value": float(network_gbit_per_s) * 1e9 / 8})
    return machine.model_copy(update={"scale_out": machine.scale_out.model_copy(update={"bandwidth_bytes_per_s_per_chip": rate})})


def card_of(run: PublishedRun) -> ModelCard:
    """The columns as a card; parts that no column gives come from the catalog's card of that model."""
    known = our_word("models", run.text("model"))
    base = None if known is None else load_model(known)
    heads = round(run.number("heads"))
    layers = round(run.number("layers"))
    head_dim = run.get("head_dim") or (base.head_dim if base and base.mla else run.number("hidden") / heads)
    activation = our_word("activations", run.text("model"))
    moe = _moe(run, base, layers)
    return ModelCard(
        vocab_size=round(run.number("vocab", 51200)),
        num_layers=layers,
        model_dim=round(run.number("hidden")),
        num_heads=heads,
        num_kv_heads=heads if base and base.mla else round(run.number("kv_heads", heads)),
        head_dim=base.head_dim if base and base.mla else round(head_dim),
        ffn_dim=round(run.number("ffn_hidden", base.ffn_dim if base else (moe.expert_dim if moe else 4 * run.number("hidden")))),
        max_sequence_tokens=round(run.number("seq_len")),
        tie_embeddings=our_word("tied", run.text("model")) is not None,
        sliding_window_tokens=base.sliding_window_tokens if base else None,
        num_window_layers=min(layers, base.num_window_layers) if base and base.num_window_layers else None,
        activation=Activation(activation) if activation else Activation.SWIGLU,
        mla=base.mla if base else None,
        moe=moe,
    )


def _moe(run: PublishedRun, base: ModelCard | None, layers: int) -> MoeCard | None:
    if not run.get("experts"):
        return None
    known = base.moe if base else None
    return MoeCard(
        num_experts=round(run.number("experts")),
        num_experts_per_token=round(run.number("topk")),
        expert_dim=round(run.number("moe_ffn_hidden", run.get("ffn_hidden"))),
        shared_dim=known.shared_dim if known else 0,
        num_dense_layers=min(known.num_dense_layers, layers - 1) if known else 0,
        dense_layers=known.dense_layers if known else "first",
        num_groups=known.num_groups if known else None,
        num_groups_per_token=known.num_groups_per_token if known else None,
    )


def cut_of(run: PublishedRun, card: ModelCard, program: Program, precision: str) -> Cut:
    axis = {name: run.number(name, 1.0) or 1.0 for name in ("tp", "pp", "cp", "ep")}
    chips, sequences = run.number("n_accel"), run.number("global_batch_seqs")
    dp = chips / (axis["tp"] * axis["pp"] * axis["cp"])
    if dp < 1 or dp != int(dp):
        raise DataError(f"row {run.id}: tp, pp and cp do not multiply to {chips:.0f} chips")
    if sequences < dp:
        raise DataError(f"row {run.id}: {sequences:.0f} sequences a step do not reach {dp:.0f} replicas")
    micro = min(run.number("micro_batch", 1.0 if axis["pp"] > 1 else _USUAL_MICROBATCH), sequences / dp)
    recompute, zero = run.text("recompute"), run.text("zero_stage")
    schedule = schedule_of(run.text("framework"))
    chunks = card.num_layers / axis["pp"] / program.chunk_layers if program.chunk_layers and axis["pp"] > 1 else 1.0
    stage = _word(run, "zero_stages", "zero_stage") or str(program.usual_zero_stage)
    gradients, sharded = stage == "2", stage == "3"
    return Cut(
        **axis,
        dp=dp,
        virtual_stages=run.number("vpp", max(1.0, chunks)) or 1.0 if schedule is Schedule.ONE_F_ONE_B else 1.0,
        microbatch_sequences=micro,
        num_microbatches=sequences / dp / micro,
        sequence_tokens=run.number("seq_len"),
        recompute=float(recompute.startswith("full")),
        selective=float(recompute not in ("", "none") and not recompute.startswith("full")),
        weights_sharded=float(sharded),
        optimizer_sharded=float(stage in ("1", "2")),
        is_low_precision=float(is_low_precision(precision)),
        value_bytes=value_bytes(precision),
        kept_bytes=program.low_precision_kept_bytes if is_low_precision(precision) else value_bytes(precision),
        gradients_sharded=float(gradients),
        replica_groups=_replica_groups(zero, dp * axis["cp"]) if sharded else 1.0,
        schedule=float(place(schedule)),
        optimizer_offload=float(run.text("optimizer_offload").lower() not in ("", "no", "none", "0", "false")),
    )


def schedule_of(framework: str) -> Schedule:
    """The pipeline's schedule where a framework's name ends in one: ``Primus-pipeline zbv-formatted``."""
    return next((schedule for pattern, schedule in _SCHEDULES if re.search(pattern, framework, re.IGNORECASE)), Schedule.ONE_F_ONE_B)


def _replica_groups(zero: str, data: float) -> float:
    """HSDP: ``fsdp(shard group 64)``, ``fsdp 16 x dp 8``; 1 where the group is all ranks."""
    found = re.search(r"(?:shard group |fsdp )(\d+)", zero)
    shards = float(found[1]) if found else data
    return data / shards if data % shards == 0 else 1.0


def measured_step_s(run: PublishedRun) -> float:
    """From step time, tokens/s, or TFLOP/s under the row's own convention of counting, in this order."""
    if seconds := run.get("step_time_s"):
        return seconds
    tokens = run.number("global_batch_seqs") * run.number("seq_len")
    if rate := run.get("tokens_per_s_per_accel"):
        return tokens / rate / run.number("n_accel")
    if rate := run.get("tflops_per_accel"):
        return _convention_flop(run, tokens) / (rate * 1e12) / run.number("n_accel")
    raise DataError(f"row {run.id}: neither step time nor tokens/s nor TFLOP/s was published")


def _convention_flop(run: PublishedRun, tokens: float) -> float:
    """FLOP of a step as Narayanan et al. 2021 (equation 3) count them: 72 B s l h^2 (1 + s/6h + V/12lh), 96 with recompute (V/16lh)."""
    layers, hidden, length, vocab = (run.number(name) for name in ("layers", "hidden", "seq_len", "vocab"))
    if run.text("flop_convention").startswith("hardware"):
        return 96 * tokens * layers * hidden**2 * (1 + length / (6 * hidden) + vocab / (16 * layers * hidden))
    attention = length / (hidden * (6 if "full attention" in run.text("flop_convention") else 12))
    return 72 * tokens * layers * hidden**2 * (1 + attention + vocab / (12 * layers * hidden))
