"""``colossus serve`` from the command line: what it refuses, in words."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest

from colossus.cli.serving import Found, check_exposure, find_model, greeting, serve_folder
from colossus.spec.errors import RunError, SpecError
from colossus.spec.run import MARKER
from tests.cli.calling import call


def test_a_new_key_is_printed_once_and_kept_as_a_hash(capsys, monkeypatch, tmp_path):
    file = tmp_path / "keys"
    code, out, err = call(capsys, monkeypatch, "serve", "--new-key", "ann", file)
    assert code == 0 and out.startswith("sk-colossus-") and out.strip() not in file.read_text() and "cannot be shown again" in err
    code, out, err = call(capsys, monkeypatch, "serve", "--new-key", "ann", file)
    assert code == 1 and not out and "has a key already" in err
    code, out, err = call(capsys, monkeypatch, "serve", "--new-key", "bob", tmp_path / "none" / "keys")
    assert code == 1 and not out and "No such file" in err and "mkdir -p" in err


def test_what_is_refused_leaves_no_folder(capsys, monkeypatch, tmp_path):
    """Neither a folder nor a word about engines that are not started."""
    monkeypatch.setattr("colossus.cli.serving.find_model", lambda name, runs, say: Found(path=tmp_path / "m"))
    monkeypatch.setattr("colossus.serve.model.open_model", lambda path: SimpleNamespace(name="m", chat_template=None))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        for arguments, words in (
            (["--port", port], "hint: another --port"),
            (["--host", "nosuch.invalid", "--no-auth"], "hint: for --host a name"),
            (["--host", "192.0.2.1", "--no-auth"], "hint: for --host a name"),
            (["--api-keys", tmp_path / "absent"], "--new-key NAME"),
        ):
            code, out, err = call(capsys, monkeypatch, "serve", "m", "--runs", tmp_path, *arguments)
            assert code == 1 and not out and words in err and "engine 0" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing-here"], 1, "there is no model 'nothing-here'"),
        (["."], 1, "neither config.json nor run.json"),
        (["m", "--host", "0.0.0.0"], 1, "no key is asked for"),
        (["m", "--replicas", "0"], 2, "0 is not in the range"),
        (["m", "--weights", "float8"], 2, "float8"),
        (["m", "--port", "70000"], 2, "70000"),
        (["m", "--on", "mars"], 2, "mars"),
        ([], 2, "MODEL"),
    ],
)
def test_bad_inputs_are_words(capsys, monkeypatch, tmp_path, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = call(capsys, monkeypatch, "serve", *arguments)
    assert found == code and words in err and not out and "Traceback" not in err


def test_a_name_close_to_a_runs_is_told(tmp_path):
    (tmp_path / "tiny-001").mkdir()
    (tmp_path / "tiny-001" / "run.json").write_text("{}")
    with pytest.raises(RunError) as caught:
        find_model("tiny-002", tmp_path, print)
    assert "tiny-001" in caught.value.hint and "smollm2" in caught.value.hint


def test_loopback_needs_no_key_and_others_may_be_opened_by_word(tmp_path):
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, None, no_auth=False)
    check_exposure("0.0.0.0", None, no_auth=True)
    check_exposure("0.0.0.0", tmp_path / "keys", no_auth=False)
    with pytest.raises(SpecError):
        check_exposure("192.168.0.7", None, no_auth=False)


def test_each_server_has_a_folder_of_its_own(tmp_path):
    folders = [serve_folder(tmp_path, "org/My Model") for _ in range(3)]
    assert [folder.name for folder in folders] == ["org-My-Model-1", "org-My-Model-2", "org-My-Model-3"]
    assert serve_folder(tmp_path, "..").parent == tmp_path / "serve"


def test_the_greeting_can_be_pasted():
    text = greeting("http://127.0.0.1:1", "m", needs_key=True)
    assert "curl http://127.0.0.1:1/v1/chat/completions" in text and "COLOSSUS_API_KEY" in text and 'base_url="http://127.0.0.1:1/v1"' in text
    assert "COLOSSUS_API_KEY" not in greeting("http://127.0.0.1:1", "m", needs_key=False)


def test_a_runs_export_is_made_once(tmp_path):
    run = tmp_path / "small-1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(MARKER))
    (run / "checkpoints" / "step-00000030.json").write_text("{}")
    with pytest.raises(RunError):  # nothing to export, in the words of colossus export
        find_model("small-1", tmp_path, lambda text: None)
    assert not list((run / "exports").iterdir())
    (run / "exports" / "step-30").mkdir()
    found = find_model(str(run), tmp_path, lambda text: None)
    assert found.path == (run / "exports" / "step-30").absolute() and found.name == "small-1"
