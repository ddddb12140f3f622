"""What holds for every verb."""

import subprocess
import sys

import pytest

from colossus.cli.main import VERBS
from tests.cli.calling import call


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_speaks_json(capsys, monkeypatch, verb):
    code, out, _ = call(capsys, monkeypatch, verb, "--help")
    assert code == 0
    assert f"colossus {verb} [OPTIONS]" in out and "--json" in out


def test_the_help_of_a_verb_imports_nothing_heavy():
    words = f"import sys; from colossus.cli.main import cli; [cli.main([verb, '--help'], standalone_mode=False) for verb in {list(VERBS)}]"
    check = words + "; heavy = {'jax', 'numpy', 'pydantic', 'rich', 'tokenizers'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
