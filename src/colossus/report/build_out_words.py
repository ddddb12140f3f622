"""A build-out in words, the same in terminal and page: verdict, key figures, and rows of limits, comparisons and sources."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from colossus.report.plan_words import count, energy, money, short_count
from colossus.spec.build_out import BuildOut, Compared, Shortage
from colossus.spec.units import format_quantity

_KINDS = {"grid": "the grid's contract", "substation": "the substation", "turbines": "turbines on the site", "battery": "batteries"}
LIMIT_HEADER = ("from", "to", "chips dark at most", "short by", "limited by", "waits for", "or all at")
COMPARED_HEADER = ("date", "figure", "published", "ours", "ratio", "source")
_MOST_SPELLS = 4
GROWTH_HEADER = ("date", "node", "chips", "source")
SUPPLY_HEADER = ("from", "to", "source of power", "kind", "power", "stored", "source")


def watts(value: float) -> str:
    return format_quantity(value, "W")


def verdict(site: BuildOut) -> str:
    """What the build-out comes to, in one or two sentences."""
    last = site.num_days - 1
    built = f"{count(site.all_chips(last), 'chip')} by {_full_day(site)}, {watts(site.capacity_w[last])} of facility, {money(site.total_usd(last))} spent by {site.day(last)}."
    if not site.shortages:
        return f"{built} Power was there for every chip on every day.{_without_turbines(site)}"
    worst = max(site.shortages, key=lambda shortage: shortage.num_dark_chips_at_most)
    dark = f"up to {count(worst.num_dark_chips_at_most, 'chip')} stand dark"
    if len(site.shortages) == 1:
        return f"{built} Power is the limit {_spells(site.shortages)}: {dark}, for want of {_KINDS[worst.limit]}."
    return f"{built} Power is the limit {_spells(site.shortages)}: {dark}, on {worst.begin} to {worst.end} for want of {_KINDS[worst.limit]}."


def _spells(shortages: Sequence[Shortage]) -> str:
    """Each of them; where there are many, how many and between which days."""
    told = [f"from {shortage.begin} to {shortage.end}" for shortage in shortages]
    if len(told) > _MOST_SPELLS:
        return f"{len(told)} times, first {told[0]} and last {told[-1]}"
    return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))


def _without_turbines(site: BuildOut) -> str:
    worst = max(range(site.num_days), key=lambda index: site.all_chips(index) - site.num_grid_chips[index])
    dark = site.all_chips(worst) - site.num_grid_chips[worst]
    return f" Without turbines on the site {dark:,} of {count(site.all_chips(worst), 'chip')} would have stood dark on {site.day(worst)}." if dark else ""


def _full_day(site: BuildOut) -> datetime.date:
    most = site.all_chips(site.num_days - 1)
    return site.day(next(index for index in range(site.num_days) if site.all_chips(index) == most))


def figures(site: BuildOut) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the last day."""
    last, most = site.num_days - 1, max(range(site.num_days), key=lambda index: site.site_w[index])
    swing = max(range(site.num_days), key=lambda index: site.swing_left_w[index])
    told = [
        ("chips", f"{site.all_chips(last):,}", f"all of them from {_full_day(site)}"),
        ("built for", watts(site.capacity_w[last]), "rated power, cooled on the hottest day (machines: at the year's mean)"),
        ("building", money(site.spent_usd["building"][last]), _building_remark(site, last)),
        ("draws in training", watts(site.site_w[most]), f"a day's mean, on {site.day(most)}, the most of all days"),
        ("spent", money(site.total_usd(last)), f"{money(site.spent_usd['energy'][last])} of it for {energy(site.energy_j[last])}"),
        (
            "delivers",
            format_quantity(site.flop_per_s[last], "FLOP/s"),
            f"at {site.mfu_fraction:.0%} MFU while it steps, before failures (see simulate); {site.total_flop[last]:.3g} FLOP",
        ),
        ("chip-days dark", f"{sum(site.num_dark_chips):,}", "for want of power"),
        ("swing left", watts(site.swing_left_w[swing]), _swing_remark(site, swing)),
    ]
    return told + ([] if site.job is None else [_job_figure(site)])


def _building_remark(site: BuildOut, last: int) -> str:
    """A machine of the catalog may have another base: a price by the chip, whatever it is built for."""
    built_w = max(site.capacity_w)
    each = f"${site.spent_usd['building'][last] / built_w:.2f} a watt it is built for" if built_w else "nothing is built yet"
    return f"{each}; simulate may pay it by the chip"


def _swing_remark(site: BuildOut, worst: int) -> str:
    if not site.swing_left_w[worst]:
        return f"within a step: batteries take up all of it, {watts(max(site.swing_w))} at most"
    return f"within a step, after batteries, at most ({site.day(worst)}); {watts(max(site.swing_w))} before them"


def tokens(number: float) -> str:
    """``2.1 T``, ``10,400 T``."""
    return f"{number / 1e12:,.0f} T" if number >= 1e15 else short_count(number)


def _job_figure(site: BuildOut) -> tuple[str, str, str]:
    job = site.job
    assert job is not None
    trained, ungrown = job.num_tokens[-1], job.num_ungrown_tokens[-1]
    gain = (
        f"{trained / ungrown:.3g} times what the first phase alone would have trained" if ungrown and trained > 1.005 * ungrown else "since the first chips ran"
    )
    gain += "; before failures"
    if job.total_tokens is not None:
        gain += f"; {tokens(job.total_tokens)} tokens {_ends(job.done)}, without growth {_ends(job.done_ungrown)}"
    return f"{job.model} gets", f"{tokens(trained)} tokens", gain


def _ends(day: datetime.date | None) -> str:
    return "not within twenty years" if day is None else f"by {day}"


def limit_rows(site: BuildOut) -> list[tuple[str, ...]]:
    return [_limit_row(shortage) for shortage in site.shortages]


def _limit_row(shortage: Shortage) -> tuple[str, ...]:
    slowed = f"{shortage.speed_fraction:.0%} of the full speed" if shortage.speed_fraction else "not even the lowest clock fits"
    return (
        str(shortage.begin),
        str(shortage.end),
        f"{shortage.num_dark_chips_at_most:,}",
        watts(shortage.most_short_w),
        _KINDS[shortage.limit],
        shortage.waits_for or "nothing planned",
        slowed,
    )


def compared_rows(site: BuildOut) -> list[tuple[str, ...]]:
    return [_compared_row(one) for one in site.compared]


def _compared_row(one: Compared) -> tuple[str, ...]:
    said = money if one.published_w is None else watts
    return str(one.date), one.what, said(one.published), said(one.ours), f"{one.ratio:.2f}", one.source


def growth_rows(site: BuildOut) -> list[tuple[str, ...]]:
    return [(str(one.date), one.node, f"{one.num_chips:,}", one.source) for one in site.growth]


def supply_rows(site: BuildOut) -> list[tuple[str, ...]]:
    return [
        (
            str(one.begin),
            str(one.until or ""),
            one.name,
            one.kind,
            watts(one.power_w),
            energy(one.stored_j) if one.stored_j else "",
            one.source,
        )
        for one in sorted(site.supplies, key=lambda one: one.begin)
    ]


TABLE_HEADER = ("date", "chips", "dark", "on grid alone", "built for", "needs", "supply", "draws", "spent", "FLOP/s")


def table_rows(site: BuildOut, *, most: int = 16) -> list[tuple[str, ...]]:
    """Firsts of months, thinned to about ``most``, with the first and the last day."""
    months = [index for index in range(site.num_days) if site.day(index).day == 1 and 0 < index < site.num_days - 1]
    step = max(1, -(-len(months) // most))
    return [_row(site, index) for index in (0, *months[::step], site.num_days - 1)]


def _row(site: BuildOut, index: int) -> tuple[str, ...]:
    return (
        str(site.day(index)),
        f"{site.all_chips(index):,}",
        f"{site.num_dark_chips[index]:,}",
        f"{site.num_grid_chips[index]:,}",
        watts(site.capacity_w[index]),
        watts(site.need_w[index]),
        watts(site.supply_w(index)),
        watts(site.site_w[index]),
        money(site.total_usd(index)),
        format_quantity(site.flop_per_s[index], "").strip(),
    )
