"""Sampling and export need the run's folder alone, and a fine-tuned model keeps all that came with it."""

import json
import shutil

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from colossus.engine.machine import describe_machine
from colossus.nn import generate
from colossus.nn.hf import load_params
from colossus.nn.hf_export import export_folder
from colossus.nn.parameters import init_params
from colossus.spec.errors import CheckpointError
from colossus.spec.model import ModelCard
from colossus.spec.run import Run
from colossus.train.checkpoint import DiskTier
from colossus.train.weights import load_trained
from tests.cli.calling import call, write_job

SPECIAL = ("<|begin_of_text|>", "<|stop|>", "<|turn|>")
CARD = ModelCard(vocab_size=259, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=24, max_sequence_tokens=64)


def make_tokenizer() -> Tokenizer:
    """Bytes and three special tokens, of which the first is put before each text, as Llama 3's is."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    begin = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])
    tokenizer.enable_truncation(4)
    return tokenizer


@pytest.fixture
def model(tmp_path):
    """A Hugging Face folder: weights, tokenizer and what usually lies beside it."""
    folder = tmp_path / "model"
    (tmp_path / "bare").mkdir()
    make_tokenizer().save(str(tmp_path / "bare" / "tokenizer.json"))
    export_folder(folder, CARD, init_params(CARD, jax.random.key(0)), tmp_path / "bare" / "tokenizer.json")
    beside = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]},
        "special_tokens_map.json": {"eos_token": SPECIAL[1]},
        "generation_config.json": {"eos_token_id": [257, 258], "temperature": 0.6},
    }
    for name, data in beside.items():
        (folder / name).write_text(json.dumps(data))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def trained(tmp_path, model, monkeypatch):
    """A run that goes on from the model's weights, with a checkpoint; since then all it was made from is gone, and it was moved."""
    from colossus.cli.launch import load_any_job, prepare

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    (tmp_path / "runs" / ".cache").mkdir(parents=True)
    (tmp_path / "runs" / ".cache" / "machine.json").write_text(describe_machine(measure=False).to_json())
    job = write_job(tmp_path, tmp_path / "text.txt", model='"model"', data='{ sources = ["text.txt"] }')
    run = prepare(load_any_job(job, (), 1), tmp_path / "runs", kills=())
    params = init_params(CARD, jax.random.key(1))
    tier = DiskTier(run.checkpoints, generation=1)
    tier.save(3, {"step": np.int32(3), "params": params, "opt_state": (params, params)}, {})
    tier.wait()
    moved = Run(run.folder.rename(tmp_path / "moved"))
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(model)
    return moved


def test_parameters_come_from_the_run_alone(trained):
    step, params = load_trained(trained)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, params, init_params(CARD, jax.random.key(1)))


def test_a_damaged_checkpoint_is_not_sampled(trained):
    largest = max((trained.checkpoints / "step-00000003").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no checkpoint that can be read"):
        load_trained(trained)


def test_an_export_has_all_that_came_with_the_model(trained, tmp_path, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, "export", trained.folder, "--to", tmp_path / "out")
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == SPECIAL[:2]
    assert json.loads((tmp_path / "out" / "special_tokens_map.json").read_text()) == {"eos_token": SPECIAL[1]}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": [257, 258], "temperature": 0.6}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 257
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "out", CARD), load_trained(trained)[1])


def test_a_sample_begins_as_training_does(trained, capsys, monkeypatch):
    code, out, err = call(capsys, monkeypatch, "sample", trained.folder, "The quick", "--max-new-tokens", 5, "--json")
    assert code == 0, err
    assert json.loads(out)["text"].startswith("The quick")


@pytest.mark.parametrize("end", [257, 258], ids=SPECIAL[1:])
def test_a_sample_ends_at_any_end_that_the_model_knows(trained, capsys, monkeypatch, end):
    prompts, letters = [], [make_tokenizer().token_to_id(letter) for letter in "ab"]

    def stream(params, card, prompt, sampling, *, max_new_tokens, stop_token=None):
        prompts.append(list(prompt))
        yield from [*letters, end, *letters]

    monkeypatch.setattr(generate, "stream", stream)
    code, out, err = call(capsys, monkeypatch, "sample", trained.folder, "The quick", "--json")
    assert code == 0, err
    assert (json.loads(out)["text"], json.loads(out)["num_new_tokens"]) == ("The quickab", 2)
    assert [len(prompt) for prompt in prompts] == [len("The quick")], "no token for the beginning, none cut off"
