"""From a plan to the arrays that a program takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from colossus.serve.programs import mask_words
from colossus.serve.schedule import Plan
from colossus.serve.sequence import NO_TOKEN, Level, Purpose, Slots, pages_for
from colossus.serve.shapes import Key, Kind, Shapes


class Packed(NamedTuple):
    """Inputs of one step, in new arrays: the device may read them later."""

    key: Key
    ints: np.ndarray
    floats: np.ndarray
    masks: np.ndarray | None


def pack(plan: Plan, slots: Slots, shapes: Shapes) -> Packed:
    """The inputs of the cheapest program that takes the plan."""
    key = _key(plan, slots, shapes)
    ints = np.zeros(key.layout.num_ints, np.int32)
    floats = np.zeros(key.layout.num_floats, np.float32)
    parts = key.layout.unpack(ints, floats)
    rows, count = plan.slots, len(plan.slots)
    parts["num_rows"][0], parts["num_steps"][0] = count, plan.num_steps
    parts["slots"][:] = slots.num_slots
    parts["slots"][:count] = np.where(plan.draws, rows, slots.num_slots)
    parts["lengths"][:count] = plan.computed + plan.counts
    parts["pages"][:count] = slots.table[rows, : key.num_pages]
    _pack_tokens(plan, slots, key, parts)
    if "temperature" in parts:
        for name, array in (("seeds", slots.seed.view(np.int32)), ("top_k", slots.top_k)):
            parts[name][:count] = array[rows]
        for name in ("temperature", "top_p", "min_p"):
            parts[name][:count] = getattr(slots, name)[rows]
    if "wants_logprobs" in parts:
        parts["wants_logprobs"][0] = slots.wants_logprobs[rows].any()
    masks = _pack_edits(plan, slots, key, parts) if "banned" in parts else None
    if "outputs" in parts:
        _pack_outputs(plan, key, parts)
    if "targets" in parts:
        _pack_targets(plan, parts)
    return Packed(key, ints, floats, masks)


def _key(plan: Plan, slots: Slots, shapes: Shapes) -> Key:
    if plan.purpose is Purpose.SCORE:
        kind = Kind.SCORE
    elif plan.purpose is Purpose.EMBED:
        kind = Kind.EMBED
    else:
        kind = Kind.VERIFY if plan.drafts is not None else Kind(int(slots.level[plan.slots].max()))
    num_pages = int(pages_for(plan.computed + plan.counts * plan.num_steps).max())
    return shapes.fitting(kind, num_tokens=int(plan.counts.sum()), num_rows=len(plan.slots), num_pages=num_pages, decodes=plan.decodes)


def _pack_tokens(plan: Plan, slots: Slots, key: Key, parts: dict[str, np.ndarray]) -> None:
    """Tokens that the host knows; of a row that decodes the device knows its last one."""
    tokens, count = parts["tokens"], len(plan.slots)
    if key.decodes:
        tokens[:count] = NO_TOKEN
        if (fresh := slots.fresh[plan.slots]).any():
            for row in np.flatnonzero(fresh).tolist():
                tokens[row] = plan.sequences[row].tokens[plan.computed[row]]
        return
    starts = parts["starts"]
    np.cumsum(plan.counts, out=starts[1 : count + 1])
    starts[count + 1 :] = starts[count]
    fresh = slots.fresh[plan.slots]
    places = zip(plan.sequences, starts.tolist(), plan.computed.tolist(), plan.counts.tolist(), fresh.tolist(), strict=False)
    for row, (sequence, start, first, num, is_fresh) in enumerate(places):
        if num == 1 and not is_fresh:
            tokens[start] = NO_TOKEN
        elif plan.drafts is None:
            tokens[start : start + num] = sequence.tokens[first : first + num]
        else:
            own = num - len(plan.drafts[row])
            tokens[start : start + own] = sequence.tokens[first : first + own]
            tokens[start + own : start + num] = plan.drafts[row]


def _pack_edits(plan: Plan, slots: Slots, key: Key, parts: dict[str, np.ndarray]) -> np.ndarray | None:
    rows, count = plan.slots, len(plan.slots)
    edits = plan.draws & (slots.level[rows] >= Level.EDITED)
    parts["edit_slots"][:] = slots.num_slots
    parts["edit_slots"][:count] = np.where(edits, rows, slots.num_slots)
    parts["banned"][:] = NO_TOKEN
    parts["banned"][:count] = np.where((plan.computed + plan.counts < slots.min_length[rows])[:, None], slots.stops[rows], NO_TOKEN)
    parts["penalties"][:] = slots.penalties[slots.num_slots]
    parts["penalties"][:count] = slots.penalties[rows]
    masks = None
    for row, sequence in enumerate(plan.sequences):
        if sequence.matcher is not None and plan.draws[row]:
            if masks is None:
                masks = np.full((key.num_rows, mask_words(slots.vocab_size)), 0xFFFFFFFF, np.uint32)
            masks[row] = sequence.matcher.mask()
    return masks


def _pack_outputs(plan: Plan, key: Key, parts: dict[str, np.ndarray]) -> None:
    """Places of each row's last token and of the guesses behind it; where there are fewer, the last is drawn after again."""
    count = len(plan.slots)
    ends = parts["starts"][1 : count + 1].astype(np.int64)
    num_guessed = np.asarray([len(guess) for guess in plan.drafts or ()])
    steps = np.minimum(np.arange(key.num_outputs)[None, :], num_guessed[:, None])
    parts["outputs"].reshape(key.num_rows, key.num_outputs)[:count] = (ends - 1 - num_guessed)[:, None] + steps


def _pack_targets(plan: Plan, parts: dict[str, np.ndarray]) -> None:
    start = 0
    for sequence, first, num in zip(plan.sequences, plan.computed.tolist(), plan.counts.tolist(), strict=True):
        parts["targets"][start : start + num] = sequence.tokens[first + 1 : first + 1 + num]
        start += num
