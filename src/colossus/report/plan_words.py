"""How figures of a plan are said: parts of a step and of memory, energy, money, carbon; the same in terminal and page."""

from __future__ import annotations

from collections.abc import Sequence

from colossus.spec.answer import Answer, Choice
from colossus.spec.units import format_quantity

# What each part of a step is called when it is what limits it.
PART_WORDS = {
    "gemm": "matrix products",
    "attention": "attention",
    "elementwise": "memory traffic of norms, activations and routing",
    "recompute": "recomputing activations",
    "head": "the vocabulary head and loss",
    "host": "launching kernels from the host",
    "tp": "tensor-parallel communication",
    "cp": "passing keys and values between context ranks",
    "ep": "the experts' all-to-all",
    "pp": "messages between pipeline stages",
    "bubble": "the pipeline's bubble",
    "dp": "reducing gradients and gathering weights",
    "offload": "moving state and activations to the host and back",
    "optimizer": "the optimizer",
    "overhead": "overheads of a step",
    "jitter": "waiting for the slowest rank",
}
MEMORY_WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "the optimizer's state",
    "activations": "activations",
    "logits": "logits",
    "buffers": "weights as they are gathered",
    "runtime": "runtime, buffers and fragments",
}


def part_name(name: str) -> str:
    return PART_WORDS.get(name, name)


def memory_name(name: str) -> str:
    return MEMORY_WORDS.get(name, name)


def count(number: int, noun: str) -> str:
    """``1 chip``, ``2,048 chips``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def energy(joules: float) -> str:
    """In the meter's units: ``7.8 Wh``, ``1.2 kWh``, ``10,046 MWh``."""
    return _scaled(joules / 3.6e3, (" Wh", " kWh", " MWh"))


def money(usd: float) -> str:
    """``$0.04``, ``$12.50``, ``$35,490,285``, ``$41.9 G``."""
    if usd >= 1e9:
        return f"${usd / 1e9:.3g} G"
    return f"${usd:,.0f}" if usd >= 1000 else f"${usd:.2f}" if usd >= 0.01 else f"${usd:.2g}"


def carbon(kg_co2e: float) -> str:
    """``2.9 g CO2e``, ``3,751 t CO2e``."""
    return _scaled(kg_co2e * 1e3, (" g CO2e", " kg CO2e", " t CO2e"))


def _scaled(value: float, units: Sequence[str]) -> str:
    """In the first unit, of steps of 1000, that keeps it below 1000; in the last one with all its digits."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1e3
    return f"{value:.3g}{units[-1]}" if value < 999.5 else f"{value:,.0f}{units[-1]}"


def size(num_bytes: float) -> str:
    return format_quantity(num_bytes, "B", binary=True)


def short_count(number: float) -> str:
    """``8.12 T``."""
    return format_quantity(number, "").strip()


def heading(answer: Answer) -> str:
    """What was planned, where."""
    return f"{answer.model} on {count(answer.num_chips, 'chip')} of {answer.machine}, {answer.precision}, {answer.num_sequences:,} x {answer.sequence_tokens:,} tokens a step"


def rows(answer: Answer) -> list[tuple[str, str]]:
    """(figure, words) of the best layout; what the catalog does not know is left out."""
    best = answer.best
    seconds = lambda value: format_quantity(value, "s")
    told = [
        ("layout", best.layout.describe()),
        ("step", f"{seconds(best.step_s)}  ({seconds(best.lower_step_s)} to {seconds(best.upper_step_s)} holds 9 runs in 10)"),
        ("throughput", f"{best.throughput_tokens_per_s:,.0f} tokens/s, {best.throughput_tokens_per_s / answer.num_chips:,.0f} a chip"),
        ("MFU", f"{best.mfu_fraction:.1%}  {format_quantity(best.model_flop_per_s_per_chip, 'FLOP/s')} a chip"),
        ("memory", _memory(answer)),
        ("limited by", best.limited_by),
        ("time to train", f"{seconds(best.time_to_train_s)} for {short_count(answer.total_tokens)} tokens, without failures"),
    ]
    bill = [
        ("power", best.power_w, lambda value: f"{format_quantity(value, 'W')} at the site, mean"),
        ("energy", best.energy_j, energy),
        ("rent", best.cost_usd, money),
        ("to buy", best.purchase_usd, lambda value: f"{money(value)}, {money(value / answer.num_chips)} a chip"),
        ("carbon", best.carbon_kg_co2e, carbon),
    ]
    return told + [(name, words(value)) for name, value, words in bill if value is not None]


def _memory(answer: Answer) -> str:
    need, room = answer.best.memory_bytes_per_chip, answer.chip_memory_bytes
    return f"{size(need)} of a chip's {size(room)}, {need / room:.0%}" if room else f"{size(need)} a chip"


def verdict(answer: Answer) -> str:
    best = answer.best
    return (
        f"{format_quantity(best.step_s, 's')} a step, MFU {best.mfu_fraction:.1%}, {best.throughput_tokens_per_s:,.0f} tokens/s: "
        f"{format_quantity(best.time_to_train_s, 's')} for {short_count(answer.total_tokens)} tokens, as {best.layout.describe()}."
    )


def option_cells(choice: Choice) -> tuple[str, ...]:
    """Cells of one choice among numbers of chips; ``OPTION_HEADER`` names them."""
    rent = "" if choice.cost_usd is None else money(choice.cost_usd)
    return (
        f"{choice.num_chips:,}",
        format_quantity(choice.step_s, "s"),
        f"{choice.mfu_fraction:.1%}",
        format_quantity(choice.time_to_train_s, "s"),
        rent,
        choice.layout.describe(),
    )


OPTION_HEADER = ("chips", "step", "MFU", "time to train", "rent", "layout")
