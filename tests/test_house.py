"""The house's own rules: import floors, who may print, units in names, sources of facts, documented events."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import colossus
import colossus.spec
from colossus.spec.base import Spec
from colossus.spec.event import KINDS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "colossus"
# What each package may import, itself apart; DESIGN, section 4. The engine also reads the
# catalog's chips, since it describes the machine; plans draw themselves through report.
FLOORS: dict[str, set[str]] = {
    "spec": set(),
    "catalog": {"spec"},
    "policy": {"spec"},
    "report": {"spec"},
    "estimate": {"catalog", "spec"},
    "plan": {"estimate", "catalog", "report", "spec"},
    "twin": {"estimate", "policy", "catalog", "spec"},
    "nn": {"spec"},
    "train": {"nn", "policy", "spec"},
    "serve": {"nn", "policy", "spec"},
    "agent": {"policy", "spec"},
    "engine": {"policy", "catalog", "spec"},
}
TOP = {"cli", "web"}
# A process of its own, started by the engine: its stderr is its log.
PROGRAMS = {"train/worker.py", "serve/worker.py"}
NO_JAX = ("spec", "catalog", "policy", "report", "estimate", "plan", "twin")
JAX_NAMES = {"jax", "jaxlib", "optax", "orbax", "flax"}
UNIT_SUFFIXES = (
    *("_s", "_bytes", "_bytes_per_s", "_flop", "_flop_per_s", "_tokens", "_tokens_per_s", "_w", "_j", "_usd", "_usd_per_s"),
    *(
        "_kg_co2e",
        "_kg_co2e_per_j",
        "_usd_per_j",
        "_fraction",
        "_per_chip",
        "_per_node",
        "_per_replica",
        "_per_device",
        "_per_token",
        "_per_parameter",
        "_steps",
        "_every_steps",
        "_requests_per_s",
    ),
    *("_c", "_per_year", "_per_step"),
)
UNIT_PREFIXES = ("num_",)
# Numbers that are pure by nature: sizes of dims and mesh axes, hyperparameters, versions, identities.
PURE = {
    *("dp", "fsdp", "tp", "seed", "schema_version", "coordinator_port", "value", "keep_last", "max_restarts", "max_restarts_without_progress"),
    *("vocab_size", "model_dim", "head_dim", "ffn_dim", "expert_dim", "rope_theta", "norm_epsilon", "factor"),
    *("low_frequency_factor", "high_frequency_factor", "load_balance_weight", "z_loss_weight"),
    *("pp", "cp", "tp", "ep", "zero_stage", "pod_chips", "oversubscription", "cost_usd"),
    *("kv_rank", "query_rank", "rope_head_dim", "value_head_dim", "shared_dim"),
    *("shape", "spread", "lemon_factor", "fault_factor", "drain_after_faults", "node", "steps", "tokens"),
    *("rank", "learning_rate", "weight_decay", "beta1", "beta2", "epsilon", "clip_norm", "spike_sigma"),
}


def python_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def library_files() -> list[Path]:
    return [path for path in python_files() if package_of(path) not in TOP and str(path.relative_to(SOURCE)) not in PROGRAMS]


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the floor"
            yield node.lineno, node.module or ""
            if node.module == "colossus":
                yield from ((node.lineno, f"colossus.{alias.name}") for alias in node.names)


def broken_imports(path: Path, tree: ast.AST) -> Iterator[str]:
    package = package_of(path)
    for line, module in imported_modules(tree):
        parts = module.split(".")
        place = f"{path.relative_to(ROOT)}:{line} imports {module}"
        if package in NO_JAX and parts[0] in JAX_NAMES:
            yield f"{place}: {package} never imports JAX"
        if parts[0] != "colossus" or len(parts) < 2 or parts[1] == package or package in TOP:
            continue
        if parts[1] not in FLOORS.get(package, set()):
            yield f"{place}: {package} may import {', '.join(sorted(FLOORS.get(package, set()))) or 'nothing of ours'}"


def test_imports_go_strictly_down():
    broken = [problem for path in python_files() for problem in broken_imports(path, ast.parse(path.read_text()))]
    assert not broken, "\n".join(broken)


def test_every_package_has_a_floor():
    packages = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= FLOORS.keys() | TOP, packages - FLOORS.keys() - TOP


@pytest.mark.parametrize(
    "source", ["import colossus.nn", "def f():\n    from colossus.plan import plan_layout", "import jax.numpy as jnp", "from optax import adamw"]
)
def test_the_floor_test_itself_can_fail(source):
    assert list(broken_imports(SOURCE / "policy" / "x.py", ast.parse(source)))


def loud_calls(path: Path, tree: ast.AST) -> Iterator[str]:
    """Calls of print, exit, quit, sys.exit and raises of SystemExit; a module's own ``__main__`` part is a program."""
    programs = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in programs:
            continue
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        raised = isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc)
        if raised or name in ("print", "exit", "quit", "sys.exit"):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:60]}"  # type: ignore[attr-defined]


def test_only_the_cli_prints_and_exits():
    loud = [call for path in library_files() for call in loud_calls(path, ast.parse(path.read_text()))]
    assert not loud, "\n".join(loud)


def all_specs() -> list[type[Spec]]:
    for module in pkgutil.walk_packages(colossus.spec.__path__, "colossus.spec."):
        importlib.import_module(module.name)
    for name in ("chips", "models", "reliability"):
        importlib.import_module(f"colossus.catalog.{name}")
    found: list[type[Spec]] = []
    queue = list(Spec.__subclasses__())
    while queue:
        found.append(cls := queue.pop())
        queue += cls.__subclasses__()
    # Other tests may have loaded the report's records, whose steps, ranks and losses are numbers without a unit.
    ours = [cls for cls in found if cls.__module__.startswith(("colossus.spec", "colossus.catalog"))]
    return sorted(ours, key=lambda cls: cls.__qualname__)


def is_number(annotation: object) -> bool:
    """int or float, alone, annotated or in a union; bool and Literals are none."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return any(is_number(inner) for inner in typing.get_args(annotation))
    return annotation in (int, float)


def without_unit(cls: type[Spec]) -> list[str]:
    return [
        f"{cls.__name__}.{name}"
        for name, field in cls.model_fields.items()
        if is_number(field.annotation) and name not in PURE and not name.startswith(UNIT_PREFIXES) and not name.endswith(UNIT_SUFFIXES)
    ]


def test_every_number_of_a_spec_carries_its_unit():
    assert not [name for cls in all_specs() for name in without_unit(cls)]


def test_the_unit_test_itself_can_fail():
    class Bad(Spec):
        duration: float | None = None
        speed: int = 1

    assert without_unit(Bad) == ["Bad.duration", "Bad.speed"]


def test_every_fact_of_the_catalog_has_its_source_and_date():
    files = sorted((SOURCE / "catalog").rglob("*.toml"))
    assert files
    for file in files:
        data = tomllib.loads(file.read_text())
        assert data.get("source") and data.get("date"), f"{file}: source and date"


def test_every_event_is_documented():
    for kind, fields in KINDS.items():
        assert fields and all(meaning.strip() for meaning in fields.values()), kind
    page = ROOT / "docs" / "events.md"
    if page.exists():
        text = page.read_text()
        missing = [f"{kind}.{name}" for kind, fields in KINDS.items() for name in (kind, *(f.removesuffix("?") for f in fields)) if name not in text]
        assert not missing, missing
