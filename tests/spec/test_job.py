"""Jobs: dump then load is identity, all problems at once, names that teach."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.spec.base import set_path
from colossus.spec.errors import SpecError
from colossus.spec.job import TrainJob, load_job
from colossus.spec.layout import Layout

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
BASE = {"name": "a", "num_steps": 100, "model": "llama-3m", "data": {"sources": ["x.txt"]}, "batch": {"num_sequences": 8, "sequence_tokens": 16}}


def job(**changes: object) -> TrainJob:
    return TrainJob.from_data(BASE | changes, origin="test")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_round_trip(path):
    loaded = load_job(path)
    assert TrainJob.from_data(tomllib.loads(loaded.to_toml()), origin="again") == loaded


@given(
    clip=st.none() | st.floats(0.1, 10),
    sigma=st.none() | st.floats(1, 20),
    interval=st.none() | st.integers(1, 1000),
    ram=st.none() | st.integers(0, 10),
    timeout=st.floats(0.5, 1e4),
)
def test_dump_then_load_is_identity(clip, sigma, interval, ram, timeout):
    made = job(
        optimizer={"clip_norm": clip},
        guard={"spike_sigma": sigma},
        checkpoint={"interval_steps": interval, "ram_interval_steps": ram},
        recovery={"heartbeat_timeout_s": timeout},
    )
    again = TrainJob.from_data(tomllib.loads(made.to_toml()), origin="again")
    assert again == made
    assert again.digest() == made.digest()


def test_quantities_may_be_text():
    assert job(recovery={"heartbeat_timeout_s": "2 min"}).recovery.heartbeat_timeout_s == 120.0
    assert job(data={"sources": ["x"], "shard_bytes": "16 MiB"}).data.shard_bytes == 2**24
    with pytest.raises(SpecError, match="not a quantity in B"):
        job(data={"sources": ["x"], "shard_bytes": "16 metres"})


def test_every_problem_is_told_with_path_value_rule_and_nearest_name():
    with pytest.raises(SpecError) as caught:
        job(num_steps=0, sead=1, optimizer={"lerning_rate": 1.0}, layout={"remat": "som"})
    told = {problem.path: problem for problem in caught.value.problems}
    assert told.keys() == {"num_steps", "sead", "optimizer.lerning_rate", "layout.remat"}
    assert told["num_steps"].value == "0"
    assert "seed" in told["sead"].hint
    assert "'learning_rate'" in told["optimizer.lerning_rate"].hint
    assert "'selective'" in told["layout.remat"].rule


def test_nested_keys_of_a_model_table_are_suggested_too():
    card = {"vocab_size": 8, "num_layers": 1, "model_dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "ffn_dim": 8, "tie_embedings": True}
    with pytest.raises(SpecError, match="tie_embeddings"):
        job(model=card)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "exactly one of model"),
        ({"program": "a:b"}, "exactly one of model"),
        ({"data": None}, "needs \\[data\\]"),
        ({"optimizer": {"warmup_steps": 100}}, "must be below num_steps"),
        ({"batch": {"num_sequences": 8, "sequence_tokens": 16, "num_microbatches": 3}}, "multiple of batch.num_microbatches"),
        ({"name": "a/b"}, "pattern"),
    ],
)
def test_rules_between_keys(changes, words):
    data = {key: value for key, value in (BASE | changes).items() if value is not None}
    with pytest.raises(SpecError, match=words):
        TrainJob.from_data(data, origin="test")


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("1e-3", 1e-3), ("true", True), ('"a b"', "a b"), ("word", "word"), ('["a"]', ["a"]), ("off", "off")])
def test_set_reads_values_as_toml(text, value):
    data: dict = {}
    set_path(data, f"a.b={text}")
    assert data == {"a": {"b": value}}


def test_options_hold_what_toml_can():
    data = {key: value for key, value in BASE.items() if key not in ("model", "data")} | {"program": "a:b"}
    kept = TrainJob.from_data(data | {"options": {"a": 1.5, "b": {"c": ["x", True]}}}, origin="test")
    assert tomllib.loads(kept.to_toml())["options"] == kept.options
    with pytest.raises(SpecError, match="b holds None, which TOML cannot"):
        TrainJob.from_data(data | {"options": {"b": {"c": [None]}}}, origin="test")


def test_off_switches_off():
    assert job(optimizer={"clip_norm": "off"}).optimizer.clip_norm is None


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_a_layout_multiplies_to_its_devices(dp, fsdp, tp):
    layout = Layout(dp=dp, fsdp=fsdp, tp=tp)
    assert layout.num_devices == dp * fsdp * tp == layout.num_data_shards * tp
    assert Layout.from_data(layout.to_data(), origin="x") == layout
