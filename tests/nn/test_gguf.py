"""GGUF files: the container against damage, cards and weights against what was written and against transformers, tokenizers against their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from colossus.nn.gguf import open_gguf
from colossus.nn.gguf_file import GgufFile, read_gguf
from colossus.nn.gguf_tokenizer import build_tokenizer, read_vocabulary
from colossus.spec.errors import ColossusError, DataError, SpecError
from colossus.spec.model import MoeCard, RopeScaling
from tests.nn.gguf_files import TEXT, card_of, params_of, trained_bpe, write_gguf

MOE = MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=32)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-untied": ("llama", {"tie_embeddings": False}),
    "mixtral": ("llama", {"moe": MOE}),
    "qwen3": ("qwen3", {"qk_norm": True, "head_dim": 32}),
    "qwen3moe": ("qwen3moe", {"qk_norm": True, "moe": MOE}),
}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", card_of(), params_of(card_of()), tokenizer__chat_template="{{ messages }}")


@pytest.mark.parametrize("case", CASES)
def test_card_and_weights_come_back_as_they_were_written(case: str, tmp_path: Path) -> None:
    architecture, changes = CASES[case]
    card = card_of(**changes)
    params = params_of(card)
    model = open_gguf(write_gguf(tmp_path / "m.gguf", card, params, architecture=architecture))
    assert model.card.model_dump(exclude={"norm_epsilon"}) == card.model_dump(exclude={"norm_epsilon"})
    assert model.card.norm_epsilon == pytest.approx(card.norm_epsilon)
    jax.tree.map(np.testing.assert_array_equal, model.load_params(), params)


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 0.001), ("BF16", 0.01), ("Q8_0", 0.01), ("Q4_1", 0.1), ("Q5_0", 0.07), ("Q4_0", 0.15)])
def test_quantised_weights_come_back_nearly(kind: str, tolerance: float, tmp_path: Path) -> None:
    card = card_of()
    params = params_of(card)
    read = open_gguf(write_gguf(tmp_path / "m.gguf", card, params, kind=kind)).load_params()
    for array, found in zip(jax.tree.leaves(params), jax.tree.leaves(read), strict=True):
        assert found.dtype == np.float32
        assert np.abs(array - found).max() <= tolerance * np.abs(array).max()


def test_llama3_scaling_is_read_from_its_factors(tmp_path: Path) -> None:
    scaling = RopeScaling(factor=32.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=8192)
    from colossus.nn.rope import inverse_frequencies

    card = card_of(rope_theta=500000.0)
    scaled = card_of(rope_theta=500000.0, rope_scaling=scaling)
    file = read_gguf(write_gguf(tmp_path / "m.gguf", card, params_of(card)))
    factors = (inverse_frequencies(card) / inverse_frequencies(scaled)).astype(np.float32)
    assert _with_factors(file, factors).card.rope_scaling == scaling
    with pytest.raises(SpecError, match="not those of Llama 3's rule"):
        _with_factors(file, np.linspace(1, 9, len(factors), dtype=np.float32))


def _with_factors(file: GgufFile, factors: np.ndarray) -> Any:
    from colossus.nn import gguf as module
    from colossus.nn.gguf_file import GgufTensor

    tensor = GgufTensor("rope_freqs.weight", gguf.GGMLQuantizationType.F32, factors.shape, factors.view(np.uint8))
    more = GgufFile(file.path, file.metadata, {**file.tensors, tensor.name: tensor})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_gguf", lambda path: more)
        return open_gguf(file.path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type = yarn: must be none or absent"),
        ({"llama__attention__causal": False}, "llama.attention.causal = False: says something that the decoder does not compute"),
        ({"split__count": 3}, "split.count = 3: must be 1"),
        ({"architecture": "gemma3"}, "general.architecture = gemma3: is not an architecture"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    card = card_of()
    with pytest.raises(SpecError) as refused:
        open_gguf(write_gguf(tmp_path / "m.gguf", card, params_of(card), **changes))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", np.asarray([1, 2])),
        ("split.count", np.asarray([1, 2])),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", float("nan")),
        ("llama.block_count", 10**9),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(key: str, value: Any, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colossus.nn import gguf as module

    file = read_gguf(small_file)
    metadata = {name: kept for name, kept in file.metadata.items() if name != "llama.attention.key_length"} | {key: value}
    monkeypatch.setattr(module, "read_gguf", lambda path: GgufFile(path, metadata, file.tensors))
    with pytest.raises(SpecError, match=key):
        open_gguf(small_file)


def test_tensors_that_do_not_fit_are_listed(small_file: Path) -> None:
    model = open_gguf(small_file)
    tensors = dict(model.file.tensors)
    tensors["blk.0.attn_q.bias"] = tensors.pop("blk.1.ffn_up.weight")
    broken = type(model)(GgufFile(small_file, model.file.metadata, tensors), model.card, model.architecture)
    with pytest.raises(DataError) as refused:
        broken.load_params()
    assert "blk.1.ffn_up.weight (96, 64): is missing" in str(refused.value) and "blk.0.attn_q.bias (96, 64): is no part" in str(refused.value)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello world")
    (tmp_path / "empty.gguf").touch()
    for name in ("text.gguf", "empty.gguf", "absent.gguf"):
        with pytest.raises(DataError, match=r"not a GGUF file|cannot be read"):
            read_gguf(tmp_path / name)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_in_words_or_read(small_file: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = small_file.read_bytes()
    header = len(whole) - sum(tensor.rows.nbytes for tensor in read_gguf(small_file).tensors.values())
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place, size = data.draw(st.integers(0, header)), data.draw(st.integers(1, 8))
        damaged = whole[:place] + data.draw(st.binary(min_size=size, max_size=size)) + whole[place + size :]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        model = open_gguf(path)
        read_vocabulary(model.file)
        build_tokenizer(model.file)
        model.load_params()
    except ColossusError as error:
        assert str(error)


def test_byte_level_tokenizer_is_the_one_it_was_made_of(small_file: Path) -> None:
    file, source = read_gguf(small_file), trained_bpe()
    tokenizer, vocabulary = build_tokenizer(file), read_vocabulary(file)
    texts = [*TEXT, "  1234 naïve 你好 🙂\n\n\tend ", "<|im_end|>the <|endoftext|>", "", "it's we'LL"]
    for text in texts:
        assert tokenizer.encode(text).ids == source.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert (vocabulary.eos_id, vocabulary.end_ids, vocabulary.adds_bos) == (1, {0, 1}, False)
    assert vocabulary.chat_template == "{{ messages }}"


def _retold(file: GgufFile, **changes: Any) -> GgufFile:
    renamed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return GgufFile(file.path, {key: value for key, value in {**file.metadata, **renamed}.items() if value is not None}, file.tensors)


def test_a_text_begins_as_the_file_says(small_file: Path) -> None:
    file = read_gguf(small_file)
    begun = _retold(file, add_bos_token=True, bos_token_id=0)
    assert read_vocabulary(begun).adds_bos
    tokenizer = build_tokenizer(begun)
    assert tokenizer.encode("the cat").ids == [0, *build_tokenizer(file).encode("the cat").ids]
    assert tokenizer.encode("the cat", add_special_tokens=False).ids == build_tokenizer(file).encode("the cat").ids
    assert read_vocabulary(_retold(file, pre="llama-bpe", bos_token_id=0)).adds_bos


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("smollm", "it's  1234  x\n\n!", ["it", "'s", "  ", "1", "2", "3", "4", " ", " x", "\n", "\n", "!"]),
        ("gpt-2", "it's  1234  x!", ["it", "'s", " ", " 1234", " ", " x", "!"]),
        ("llama-bpe", "IT'S  12345 (x)\n y", ["IT", "'S", " ", " ", "123", "45", " (", "x", ")\n", " y"]),
        ("qwen2", "it's 123", ["it", "'s", " ", "1", "2", "3"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
    ],
)
def test_words_are_cut_by_the_rule_the_file_names(name: str, text: str, words: list[str], small_file: Path) -> None:
    tokenizer = build_tokenizer(_retold(read_gguf(small_file), pre=name))
    pieces = [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == words


def test_gpt2_words_are_those_of_the_library(small_file: Path) -> None:
    tokenizer = build_tokenizer(_retold(read_gguf(small_file), pre="gpt-2"))
    library = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("a  b\n\n c\t", "12 ab12, it's 'll  ", "  "):
        assert tokenizer.pre_tokenizer.pre_tokenize_str(text) == library.pre_tokenize_str(text)


def _sentencepiece(small_file: Path, **changes: Any) -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "ab", "▁ab", "abc", "bc", "▁a"]
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * 9], np.int32)
    scores = np.array([0.0] * 259 + [-9, -9, -9, -9, -2, -3, -4, -1, -5], np.float32)
    tokens = {"tokens": pieces, "token_type": kinds, "scores": scores, "merges": None, "pre": None, "bos_token_id": 1, "eos_token_id": 2}
    return build_tokenizer(_retold(read_gguf(small_file), model="llama", **(tokens | changes)))


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(small_file: Path) -> None:
    tokenizer = _sentencepiece(small_file)
    assert tokenizer.encode("abc ab").tokens == ["<s>", "▁", "abc", "▁ab"]  # bc (-1) before ab (-2), then abc (-4) before ▁a (-5)
    assert tokenizer.encode("aé").tokens == ["<s>", "▁a", "<0xC3>", "<0xA9>"]
    for text in ("abc ab", " a  b", "naïve 你好 🙂", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert _sentencepiece(small_file, add_space_prefix=False, add_bos_token=False).encode("ab ab").tokens == ["ab", "▁ab"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "t5"}, "model = t5 is not a tokenizer"),
        ({"pre": "qwen22"}, "pre = qwen22 is not a rule"),
        ({"eos_token_id": 10**6}, "eos_token_id = 1000000 is no token"),
        ({"merges": ["a b c"]}, "merges must hold pairs"),
        ({"merges": ["the zzzz"]}, "make no tokenizer"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"token_type": np.zeros(3, np.int32)}, "token_type must hold a number for each"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str, small_file: Path) -> None:
    file = _retold(read_gguf(small_file), **changes)
    with pytest.raises(DataError, match=words):
        build_tokenizer(file)
