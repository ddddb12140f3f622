"""The event log: what is torn is skipped, what is whole is read, whoever wrote it and however it ended."""

import ast
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import colossus
from colossus.spec.event import KINDS, Event, append_events, read_events
from colossus.spec.run import create_run, open_run, write_atomic
from tests.spec.test_job import job


def saved(step: int) -> Event:
    return Event(time_s=1.5, kind="checkpoint_saved", payload={"step": step, "tier": "disk", "duration_s": 0.1, "size_bytes": 3}, scope={"rank": 0})


def test_what_is_written_is_read(tmp_path):
    append_events(tmp_path / "e", [saved(1), saved(2)])
    append_events(tmp_path / "e", [saved(3)])
    assert list(read_events(tmp_path / "e")) == [saved(1), saved(2), saved(3)]


@given(st.integers(1, 200))
def test_a_torn_line_costs_itself_only(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "e"
    append_events(path, [saved(1), saved(2)])
    path.write_bytes(path.read_bytes()[:-cut] if cut < len(path.read_bytes()) else b"")
    append_events(path, [saved(3)])
    assert [event.payload["step"] for event in read_events(path)][-1] == 3
    assert len(list(read_events(path))) >= 1


def test_writers_beside_each_other_do_not_mix(tmp_path):
    def write(first: int) -> None:
        for step in range(first, first + 200):
            append_events(tmp_path / "e", [saved(step)])

    threads = [threading.Thread(target=write, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event.payload["step"] for event in read_events(tmp_path / "e")) == [1000 * n + i for n in range(4) for i in range(200)]


def test_foreign_lines_are_skipped(tmp_path):
    lines = ["", "[]", "null", "{}", '{"time_s": 1, "kind": "no such", "payload": {}, "scope": {}}', "\x00\x01", saved(5).to_line()]
    (tmp_path / "e").write_text("\n".join(lines) + "\n")
    assert list(read_events(tmp_path / "e")) == [saved(5)]


def test_an_event_has_exactly_the_fields_of_its_kind():
    with pytest.raises(ValueError, match="unknown event kind"):
        Event(time_s=0, kind="stepp", payload={})
    with pytest.raises(ValueError, match="missing"):
        Event(time_s=0, kind="rollback", payload={"from_step": 1})
    with pytest.raises(ValueError, match="unknown"):
        Event(time_s=0, kind="rollback", payload={"from_step": 1, "to_step": 0, "reason": "", "more": 1})


def written_fields() -> dict[str, set[str] | None]:
    """Of each kind that our code tells, the fields that it names; None where some come from a dict."""
    found: dict[str, set[str] | None] = {}
    for path in Path(colossus.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            kinds = [a.value for a in node.args if isinstance(a, ast.Constant) and a.value in KINDS] if isinstance(node, ast.Call) else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Event":  # whose payload is a dict
                found |= {word.value.value: None for word in node.keywords if word.arg == "kind" and isinstance(word.value, ast.Constant)}
            if not kinds or not ast.unparse(node.func).endswith("tell"):
                continue
            named, before = {word.arg for word in node.keywords}, found.get(kinds[0], set())
            found[kinds[0]] = None if None in named or before is None else before | named - {"scope"}
    return found


def test_every_documented_kind_and_field_is_written():
    written = written_fields()
    assert KINDS.keys() == written.keys()
    documented = {kind: {name.removesuffix("?") for name in fields} for kind, fields in KINDS.items()}
    assert {kind: fields for kind, fields in documented.items() if written[kind] is not None} == {k: f for k, f in written.items() if f is not None}


def test_runs_get_numbers_of_their_own(tmp_path):
    first, second = create_run(tmp_path, job()), create_run(tmp_path, job())
    assert (first.folder.name, second.folder.name) == ("a-1", "a-2")
    assert open_run(first.folder).load_job() == job()


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_atomic(path, json.dumps({"a": 1}))
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
