"""The engine's compiled programs: one step of a decoder, from packed inputs to drawn tokens, the state kept on the device.

Shape letters: T tokens, R rows, O outputs, S slots (and one that is nobody's), V vocabulary, B biases of a slot.
The last token of each slot stays on the device, so that the next step can be on its way before the host has read this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colossus.nn.paged import Batch, PagedDecoder, Pages
from colossus.nn.sampling import Controls, Edits, Logprobs, edit, greedy, sample, token_logprobs
from colossus.serve.compiling import ProgramStore
from colossus.serve.sequence import MAX_BIASES
from colossus.serve.shapes import Key, Kind

NUM_TOP = 20  # likeliest tokens whose log-probabilities can be asked for
MAX_FUSED_STEPS = 16
_MASK_BITS = 32
_NUM_COMPILERS = 2  # one traces while the other waits for XLA


class State(NamedTuple):
    """What every program takes and gives back, in place."""

    pages: Pages
    last_s: jax.Array  # each slot's newest token


class EditState(NamedTuple):
    """What the edits of each slot's logits need; only programs that edit take it."""

    counts_sv: jax.Array  # int32: of each token in the answer
    in_prompt_sv: jax.Array
    bias_ids_sb: jax.Array
    bias_values_sb: jax.Array


class Outputs(NamedTuple):
    """What a step brings to the host; what its kind does not bring is None."""

    tokens: jax.Array | None = None  # (steps, R), or (O,) to hold guesses against
    logprobs: Logprobs | None = None
    hidden_rd: jax.Array | None = None


class Programs:
    """Compiled steps and the state they share. Only the order of calls counts: each begins where the last one ended."""

    def __init__(self, decoder: PagedDecoder, *, num_pages: int, num_slots: int) -> None:
        self._decoder = decoder
        self._put: Callable[[Any], Any] = getattr(decoder, "put", jax.device_put)  # whole on each device of a mesh
        self._num_slots = num_slots
        vocab_size = decoder.card.vocab_size
        self._state = State(decoder.empty_pages(num_pages), self._put(np.zeros(num_slots + 1, np.int32)))
        self._edits = EditState(*self._put(_empty_edits(num_slots + 1, vocab_size)))
        self._free_masks: dict[int, jax.Array] = {}
        self._compiled: dict[Key, Any] = {}
        self._enter = jax.jit(_enter, donate_argnums=0)

    @property
    def num_compiled(self) -> int:
        return len(self._compiled)

    def compile(self, keys: Sequence[Key], progress: Callable[[int, Key], None]) -> None:
        """Makes every program, or reads it from the disk, and runs each once on nothing, so that the first request meets no first time."""
        inputs = _abstract((self._decoder.weights, self._state, self._edits))
        devices: list[Any] = sorted(self._state.last_s.sharding.device_set, key=lambda device: device.id)
        store = ProgramStore(repr((type(self._decoder).__name__, self._decoder.card, inputs)), devices)
        make = lambda key: store.get_or_make(repr(key), partial(self._lowered, key, *inputs))
        with ThreadPoolExecutor(_NUM_COMPILERS) as pool:
            for number, (key, program) in enumerate(zip(keys, pool.map(make, keys), strict=True)):
                self._compiled[key] = program
                jax.block_until_ready(self.run(key, *_nothing(key)))
                progress(number, key)
        self.enter(self._num_slots, np.zeros(0, np.int32), np.zeros(0, np.int32), {})

    def run(self, key: Key, ints: np.ndarray, floats: np.ndarray, masks: np.ndarray | None = None) -> Outputs:
        """Dispatches one step; its outputs can be waited for."""
        program = self._compiled[key]
        if key.kind is Kind.EDITED:
            allowed = self._all_free(key.num_rows) if masks is None else masks
            outputs, self._state, self._edits = program(self._decoder.weights, self._state, ints, floats, self._edits, allowed)
        else:
            outputs, self._state = program(self._decoder.weights, self._state, ints, floats)
        return outputs

    def enter(self, slot: int, prompt: np.ndarray, answer: np.ndarray, biases: dict[int, float]) -> None:
        """What a slot's edits start from: the tokens of its prompt and of its answer so far, and its biases."""
        vocab_size = self._decoder.card.vocab_size
        counts = np.bincount(answer, minlength=vocab_size).astype(np.int32)
        in_prompt = np.zeros(vocab_size, bool)
        in_prompt[prompt] = True
        ids, values = np.full(MAX_BIASES, vocab_size, np.int32), np.zeros(MAX_BIASES, np.float32)
        ids[: len(biases)], values[: len(biases)] = list(biases.keys()), list(biases.values())
        self._edits = self._enter(self._edits, np.int32(slot), counts, in_prompt, ids, values)

    def _all_free(self, num_rows: int) -> jax.Array:
        """Masks that allow every token, made once."""
        if num_rows not in self._free_masks:
            words = mask_words(self._decoder.card.vocab_size)
            self._free_masks[num_rows] = self._put(np.full((num_rows, words), 0xFFFFFFFF, np.uint32))
        return self._free_masks[num_rows]

    def _lowered(self, key: Key, weights: Any, state: Any, edits: Any) -> Any:
        layout = key.layout
        inputs = [jax.ShapeDtypeStruct((layout.num_ints,), jnp.int32), jax.ShapeDtypeStruct((layout.num_floats,), jnp.float32)]
        step = partial(_STEPS[key.kind], self._decoder, key)
        if key.kind is not Kind.EDITED:
            return jax.jit(step, donate_argnums=1).lower(weights, state, *inputs)
        masks = jax.ShapeDtypeStruct((key.num_rows, mask_words(self._decoder.card.vocab_size)), jnp.uint32)
        return jax.jit(step, donate_argnums=(1, 4)).lower(weights, state, *inputs, edits, masks)


def _abstract(tree: Any) -> Any:
    """Shapes and places alone: the arrays themselves are given away with every step."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def mask_words(vocab_size: int) -> int:
    return -(-vocab_size // _MASK_BITS)


def _nothing(key: Key) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(key.layout.num_ints, np.int32), np.zeros(key.layout.num_floats, np.float32)


def _empty_edits(num_slots: int, vocab_size: int) -> tuple[np.ndarray, ...]:
    return (
        np.zeros((num_slots, vocab_size), np.int32),
        np.zeros((num_slots, vocab_size), bool),
        np.full((num_slots, MAX_BIASES), vocab_size, np.int32),
        np.zeros((num_slots, MAX_BIASES), np.float32),
    )


def _enter(edits: EditState, slot: jax.Array, *own: jax.Array) -> EditState:
    return EditState(*(whole.at[slot].set(row) for whole, row in zip(edits, own, strict=True)))


def _batch(key: Key, parts: dict[str, jax.Array], last_s: jax.Array) -> tuple[Batch, jax.Array]:
    """The decoder's inputs, and the row of each token. Negative tokens are those that the device drew last."""
    num_rows, lengths_r = parts["num_rows"][0], parts["lengths"]
    if key.decodes:
        row_t = jnp.arange(key.num_rows)
        starts_r = jnp.minimum(jnp.arange(key.num_rows + 1), num_rows)
        positions_t = jnp.maximum(lengths_r - 1, 0)
    else:
        starts_r = parts["starts"]
        index_t = jnp.arange(key.num_tokens)
        row_t = jnp.clip(jnp.searchsorted(starts_r, index_t, side="right") - 1, 0, key.num_rows - 1)
        positions_t = jnp.maximum(lengths_r[row_t] - starts_r[row_t + 1] + index_t, 0)
        positions_t = jnp.where(index_t < starts_r[-1], positions_t, 0)
    tokens_t = jnp.where(parts["tokens"] < 0, last_s[parts["slots"][row_t]], parts["tokens"])
    return Batch(tokens_t, positions_t, starts_r, lengths_r, parts["pages"]), row_t


def _drawn(logits_ov: jax.Array, parts: dict[str, jax.Array], place_o: jax.Array, row_o: jax.Array | None = None) -> jax.Array:
    """A token of each output; where no row wants chance, the likeliest, for less."""
    of_row = lambda name: parts[name] if row_o is None else parts[name][row_o]
    seed_o = jax.lax.bitcast_convert_type(of_row("seeds"), jnp.uint32)
    controls = Controls(seed_o, place_o, of_row("temperature"), of_row("top_k"), of_row("top_p"), of_row("min_p"))
    return jax.lax.cond(jnp.any(parts["temperature"] > 0), sample, lambda logits_ov, _: greedy(logits_ov), logits_ov, controls)


def _decode(decoder: PagedDecoder, key: Key, weights: Any, state: State, ints: jax.Array, floats: jax.Array) -> tuple[Outputs, State]:
    """One step or several: each draws a token of every row and goes on with it. The number of steps is an input: one program for all."""
    parts = key.layout.unpack(ints, floats)
    batch, _ = _batch(key, parts, state.last_s)
    real_r = jnp.arange(key.num_rows) < parts["num_rows"][0]

    def one(step: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        pages, tokens_r, lengths_r, drawn_kr = carry
        now = batch._replace(tokens_t=tokens_r, positions_t=jnp.maximum(lengths_r - 1, 0), lengths_r=lengths_r)
        hidden_rd, pages = decoder.forward(weights, pages, now)
        tokens_r = _drawn(decoder.logits(weights, hidden_rd, parts["num_rows"][0]), parts, lengths_r)
        return pages, tokens_r, jnp.where(real_r, lengths_r + 1, 0), drawn_kr.at[step].set(tokens_r)

    drawn_kr = jnp.zeros((MAX_FUSED_STEPS, key.num_rows), jnp.int32)
    carry = (state.pages, batch.tokens_t, batch.lengths_r, drawn_kr)
    pages, tokens_r, _, drawn_kr = jax.lax.fori_loop(0, parts["num_steps"][0], one, carry)
    return Outputs(tokens=drawn_kr), State(pages, state.last_s.at[parts["slots"]].set(tokens_r))


def _last_logits(decoder: PagedDecoder, weights: Any, pages: Pages, batch: Batch, num_rows: jax.Array) -> tuple[jax.Array, Pages]:
    """Logits of each row's last token."""
    hidden_td, pages = decoder.forward(weights, pages, batch)
    if batch.tokens_t.shape != batch.lengths_r.shape:
        hidden_td = hidden_td[jnp.maximum(batch.starts_r[1:] - 1, 0)]
    return decoder.logits(weights, hidden_td, num_rows), pages


def _mixed(decoder: PagedDecoder, key: Key, weights: Any, state: State, ints: jax.Array, floats: jax.Array) -> tuple[Outputs, State]:
    """Rows that decode beside rows that read their prompts."""
    parts = key.layout.unpack(ints, floats)
    batch, _ = _batch(key, parts, state.last_s)
    logits_rv, pages = _last_logits(decoder, weights, state.pages, batch, parts["num_rows"][0])
    drawn_r = _drawn(logits_rv, parts, batch.lengths_r)
    return Outputs(tokens=drawn_r[None]), State(pages, state.last_s.at[parts["slots"]].set(drawn_r))


def _plain_step(decoder: PagedDecoder, key: Key, *inputs: Any) -> tuple[Outputs, State]:
    return (_decode if key.decodes else _mixed)(decoder, key, *inputs)


def _edited(
    decoder: PagedDecoder, key: Key, weights: Any, state: State, ints: jax.Array, floats: jax.Array, edits: EditState, mask_rw: jax.Array
) -> tuple[Outputs, State, EditState]:
    """Any rows; the logits are changed before a token is drawn, and the counts after it."""
    parts = key.layout.unpack(ints, floats)
    batch, _ = _batch(key, parts, state.last_s)
    logits_rv, pages = _last_logits(decoder, weights, state.pages, batch, parts["num_rows"][0])
    drawn_r = _drawn(edit(logits_rv, _edits_of(parts, edits, mask_rw)), parts, batch.lengths_r)
    logprobs = _logprobs_where_wanted(logits_rv, drawn_r, parts["wants_logprobs"][0] > 0)
    edits = edits._replace(counts_sv=edits.counts_sv.at[parts["edit_slots"], drawn_r].add(1))
    return Outputs(tokens=drawn_r[None], logprobs=logprobs), State(pages, state.last_s.at[parts["slots"]].set(drawn_r)), edits


def _logprobs_where_wanted(logits_rv: jax.Array, drawn_r: jax.Array, are_wanted: jax.Array) -> Logprobs:
    """Zeros where no row wants them, since the likeliest of a large vocabulary cost time."""
    find = lambda logits_rv, drawn_r: token_logprobs(logits_rv, drawn_r, min(NUM_TOP, logits_rv.shape[1]))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(find, logits_rv, drawn_r))
    return jax.lax.cond(are_wanted, find, lambda *_: nothing, logits_rv, drawn_r)


def _edits_of(parts: dict[str, jax.Array], edits: EditState, mask_rw: jax.Array) -> Edits:
    counts_rv, in_prompt_rv, ids_rb, values_rb = (whole[parts["edit_slots"]] for whole in edits)
    vocab_size = counts_rv.shape[1]
    banned_rb = jnp.where(parts["banned"] < 0, vocab_size, parts["banned"])  # an id past the vocabulary biases nothing
    presence_r, frequency_r, repetition_r = (parts["penalties"][:, place] for place in range(3))
    ids_rb = jnp.concatenate([ids_rb, banned_rb], axis=1)
    values_rb = jnp.concatenate([values_rb, jnp.full(banned_rb.shape, -jnp.inf)], axis=1)
    return Edits(counts_rv, in_prompt_rv, presence_r, frequency_r, repetition_r, ids_rb, values_rb, mask_rw)


def _verify(decoder: PagedDecoder, key: Key, weights: Any, state: State, ints: jax.Array, floats: jax.Array) -> tuple[Outputs, State]:
    """Draws after each of the last tokens of each row, with the chance of that very place: what would be drawn without guesses."""
    parts = key.layout.unpack(ints, floats)
    batch, row_t = _batch(key, parts, state.last_s)
    hidden_td, pages = decoder.forward(weights, state.pages, batch)
    logits_ov = decoder.logits(weights, hidden_td[parts["outputs"]])
    place_o = batch.positions_t[parts["outputs"]] + 1
    drawn_o = _drawn(logits_ov, parts, place_o, row_t[parts["outputs"]])
    return Outputs(tokens=drawn_o), State(pages, state.last_s)


def _score(decoder: PagedDecoder, key: Key, weights: Any, state: State, ints: jax.Array, floats: jax.Array) -> tuple[Outputs, State]:
    parts = key.layout.unpack(ints, floats)
    batch, _ = _batch(key, parts, state.last_s)
    hidden_td, pages = decoder.forward(weights, state.pages, batch)
    logits_tv = decoder.logits(weights, hidden_td)
    return Outputs(logprobs=token_logprobs(logits_tv, parts["targets"], min(NUM_TOP, logits_tv.shape[1]))), State(pages, state.last_s)


def _embed(decoder: PagedDecoder, key: Key, weights: Any, state: State, ints: jax.Array, floats: jax.Array) -> tuple[Outputs, State]:
    parts = key.layout.unpack(ints, floats)
    batch, row_t = _batch(key, parts, state.last_s)
    hidden_td, pages = decoder.forward(weights, state.pages, batch)
    real_t1 = (jnp.arange(key.num_tokens) < batch.starts_r[-1])[:, None]
    sums_rd = jnp.zeros((key.num_rows, hidden_td.shape[1]), jnp.float32).at[row_t].add(jnp.where(real_t1, hidden_td, 0).astype(jnp.float32))
    return Outputs(hidden_rd=sums_rd), State(pages, state.last_s)


_STEPS: dict[Kind, Callable[..., Any]] = {
    Kind.PLAIN: _plain_step,
    Kind.EDITED: _edited,
    Kind.VERIFY: _verify,
    Kind.SCORE: _score,
    Kind.EMBED: _embed,
}
