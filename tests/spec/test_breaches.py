"""Problems are told in the file's own words: no tag of a union, no inside of a validator, and of a union the branch that was meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from colossus.catalog.scenarios import load_scenario
from colossus.spec.base import Spec
from colossus.spec.errors import SpecError
from colossus.spec.scenario import Scenario

INSIDES = ("function-", "functools", "literal[", "FaultProfile", "faults.str", "Input should be a valid dictionary")


def told(data: dict, cls: type[Spec] = Scenario) -> list[str]:
    """Every problem of a spec's data; of a scenario's, laid over the default."""
    with pytest.raises(SpecError) as error:
        cls.from_data(load_scenario().to_data() | data if cls is Scenario else data, origin="mine.toml")
    return [str(problem) for problem in error.value.problems]


PROFILE = {"name": "x", "detect": "1 min", "diagnose": "1 s", "repair": "1 h"}


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("0s", "'0s': Input should be greater than 0 (or write 'daly' or 'adaptive')"),
        ("1min..1d", "not a quantity in s"),
        ([1], "Input should be a valid number; or Input should be 'daly' or 'adaptive'"),
    ],
)
def test_of_a_number_or_a_word_the_number_is_told_with_the_words_beside_it(value, rule):
    [problem] = told({"checkpoint": load_scenario().to_data()["checkpoint"] | {"interval_s": value}})
    assert problem.startswith("checkpoint.interval_s = ") and rule in problem
    assert not any(inside in problem for inside in INSIDES)


def test_of_a_name_or_a_table_the_one_that_was_written_is_told():
    problems = told({"faults": {"name": "x", "detcet": "1 min", "diagnose": "1 parsec", "repair": "1 h"}})
    assert problems[0] == "faults.detect = (absent): is required"
    assert problems[1].startswith("faults.diagnose.mean_s = '1 parsec': not a quantity in s")
    assert problems[2] == "faults.detcet = '1 min': is not a known key (did you mean 'detect'?)"
    assert len(problems) == 3
    assert told({"faults": 3}) == ["faults = 3: must be a text; or must be a table"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"faults": PROFILE | {"classes": [{"cause": "a", "component": "gpu", "mtbf_s": "1 h"}] * 2}}, "faults = (the file): cause a stands twice"),
        ({"faults": PROFILE | {"classes": [{"cause": "a", "component": "gpu", "mtbf": "1 h"}]}}, "faults.classes.0.mtbf = '1 h': is not a known key"),
        ({"injections": [{"every": "1 h", "cuase": "x"}]}, "injections.0.cuase = 'x': is not a known key (did you mean 'cause'?)"),
        ({"power-limit": 3}, "power-limit = 3: is not a known key"),
    ],
)
def test_keys_of_tables_and_lists_are_told_in_full_with_the_nearest(data, problem):
    problems = told(data)
    assert any(each.startswith(problem) for each in problems), problems
    assert not any(inside in each for each in problems for inside in INSIDES)


class Leaf(Spec):
    size: int


class Twig(Spec):
    leaf: Leaf | str | None = None
    leaves: list[Leaf | int] = Field(default_factory=list)


class Tree(Spec):
    twig: Twig | int
    twigs: dict[str, Twig | bool] = Field(default_factory=dict)


def test_unions_in_unions_lists_and_tables():
    assert told({"twig": {"leaf": {"size": "x"}}}, Tree)[0].startswith("twig.leaf.size = 'x'")
    assert told({"twig": {"leaves": [1, {"sise": 1}]}}, Tree) == [
        "twig.leaves.1.size = (absent): is required",
        "twig.leaves.1.sise = 1: is not a known key (did you mean 'size'?)",
    ]
    assert told({"twig": 1, "twigs": {"a": {"leav": "x"}}}, Tree) == ["twigs.a.leav = 'x': is not a known key (did you mean 'leaves' or 'leaf'?)"]


def tables(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(["twig", "twigs", "leaf", "leaves", "size", "x y"]), inner, max_size=3)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "x", "off"]), lambda inner: st.lists(inner, max_size=2) | tables(inner), max_leaves=6
)


@given(tables(ANY))
def test_whatever_is_wrong_every_path_is_one_of_the_data(data):
    """Up to its last key, which may be the one that is absent."""
    try:
        Tree.from_data(data, origin="any")
    except SpecError as error:
        for problem in error.problems:
            assert stands(data, problem.path.split(".")[:-1]), problem


def stands(data: object, path: list[str]) -> bool:
    if not path:
        return True
    inner = data.get(path[0]) if isinstance(data, dict) else data[int(path[0])] if isinstance(data, list) else None
    return inner is not None and stands(inner, path[1:])
