"""Quantities as text at the edge, SI base units inside.

A TOML file may say ``"16 GiB"`` or ``"10 min"``; the program only ever holds 17179869184 bytes or 600.0 seconds.
GB = 1e9 and GiB = 2**30, always.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_TIMES = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_J_PER_KWH = 3.6e6
# Bases whose texts are no prefix and base: what contracts and meters say.
_NAMED = {
    "s": _TIMES | {"us": 1e-6, "ns": 1e-9},
    "J": {prefix + "J": scale for prefix, scale in _PREFIXES.items()} | {prefix + "Wh": 3600 * scale for prefix, scale in _PREFIXES.items()},
    "USD/s": {"USD/s": 1.0, "USD/h": 1 / 3600},
    "USD/J": {"USD/J": 1.0, "USD/kWh": 1 / _J_PER_KWH, "USD/MWh": 1e-3 / _J_PER_KWH},
    "kgCO2e/J": {"kgCO2e/J": 1.0, "kgCO2e/kWh": 1 / _J_PER_KWH, "gCO2e/kWh": 1e-3 / _J_PER_KWH},
}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*(\S.*?)?\s*$")


def _scales(base: str) -> dict[str, float]:
    if base in _NAMED:
        return _NAMED[base]
    scales = {prefix + base: scale for prefix, scale in _PREFIXES.items()}
    if base.startswith("B"):
        scales |= {prefix + base: scale for prefix, scale in _BINARY.items()}
    if base == "B/s":
        scales |= {f"{prefix}b/s": scale / 8 for prefix, scale in _PREFIXES.items()}
    return scales


def parse_quantity(text: str, base: str) -> float:
    """``parse_quantity("16 GiB", "B") == 2**34``. Raises ValueError.

    ``base``: B, B/s (also in bits: ``"400 Gb/s"``), s, FLOP/s, W, J (also ``"5 MWh"``), USD, USD/s (``"2.99 USD/h"``), USD/J (``"0.08 USD/kWh"``) or
    kgCO2e/J (``"0.4 kgCO2e/kWh"``).
    """
    match = _NUMBER.match(text)
    scales = _scales(base)
    if match is None or match.group(2) not in scales:
        raise ValueError(f"not a quantity in {base}; write a number and one of {', '.join(scales)}")
    return float(match.group(1).replace("_", "")) * scales[match.group(2)]


def format_quantity(value: float, base: str, *, binary: bool = False) -> str:
    """A short text for people: ``format_quantity(1.6e11, "FLOP/s") == "160 GFLOP/s"``."""
    if base == "s":
        return format_duration(value)
    steps = [("", 1.0), *((_BINARY if binary else {k: v for k, v in _PREFIXES.items() if k not in ("", "K")}).items())]
    prefix, scale = next(((p, s) for p, s in reversed(steps) if abs(value) >= s), steps[0])
    return f"{value / scale:.3g} {prefix}{base}"


def format_duration(seconds: float) -> str:
    """``format_duration(3725) == "1 h 2 min"``; three significant digits below a minute, nothing exact beyond 1,000 years."""
    if seconds > 1000 * 365.25 * 86400:
        return "> 1,000 years"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(i for i, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def _from_text(base: str, kind: type) -> BeforeValidator:
    def convert(value: Any) -> Any:
        return kind(parse_quantity(value, base)) if isinstance(value, str) else value

    return BeforeValidator(convert)


Seconds = Annotated[float, _from_text("s", float)]
Bytes = Annotated[int, _from_text("B", int)]
BytesPerS = Annotated[float, _from_text("B/s", float)]
Watts = Annotated[float, _from_text("W", float)]
Joules = Annotated[float, _from_text("J", float)]


def at_most(limit: float, text: str) -> AfterValidator:
    """A bound that says itself, and why, in words."""
    return AfterValidator(lambda value: value if value <= limit else _refused(f"must be at most {text}"))


def at_least(limit: float, text: str) -> AfterValidator:
    return AfterValidator(lambda value: value if value >= limit else _refused(f"must be at least {text}"))


def _refused(rule: str) -> Any:
    raise ValueError(rule)


MOST_S = 36525 * 86400.0
# Of what a simulation plays or waits for: no machine lives longer, and sums of seconds stay exact to a microsecond.
Lasting = Annotated[Seconds, at_most(MOST_S, '100 years ("36525 d"), longer than any machine lives')]
