"""From what a user names to what is served: a run of ours (exported first), a Hugging Face folder, a GGUF file, or ``smollm2``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossus.spec.errors import Problem, RunError, SpecError, nearest
from colossus.spec.run import Run, open_run

if TYPE_CHECKING:
    from collections.abc import Callable

SMOLLM2 = "smollm2"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A folder or file to serve, and a better name than its own where there is one."""

    path: Path
    name: str | None = None


def find_model(name: str, runs: Path, say: Callable[[str], None]) -> Found:
    """What a user named. Raises ColossusError in words."""
    path = Path(name).expanduser()
    if name == SMOLLM2 and not path.exists():
        from colossus.serve.model import smollm2_file

        return Found(path=smollm2_file(), name=SMOLLM2)
    if path.is_file() or (path / "config.json").is_file():
        return Found(path=path.absolute())
    if name == "last" and not path.exists():
        return _found_run(open_run(path, runs), say)
    for folder in (path, runs / name):
        if (folder / "run.json").is_file():
            return _found_run(open_run(folder), say)
    if path.is_dir():
        raise RunError(f"{name} is a folder, but no model: it has neither config.json nor run.json", hint=_KINDS)
    found = {entry.parent.name for entry in runs.glob("*/run.json")}
    close = nearest(name, {*found, SMOLLM2}) if found else None
    raise RunError(f"there is no model {name!r}", hint=f"{close}; {_KINDS}" if close else _KINDS)


_KINDS = "give a run of colossus train, a Hugging Face folder, a .gguf file, or smollm2"


def _found_run(run: Run, say: Callable[[str], None]) -> Found:
    return Found(path=exported(run, say), name=run.folder.resolve().name)


def exported(run: Run, say: Callable[[str], None]) -> Path:
    """The newest good checkpoint as a Hugging Face folder, ``exports/step-N`` of the run, made where it is not there yet."""
    steps = [int(path.stem.removeprefix("step-")) for path in run.checkpoints.glob("step-*.json")]
    folder = run.folder / "exports"
    target = folder / f"step-{max(steps, default=0)}"
    if target.is_dir():
        return target.absolute()
    say(f"exporting the newest checkpoint of {run.folder}")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
        step = _export(run, Path(making) / "model")
        target = folder / f"step-{step}"
        if not target.is_dir():
            (Path(making) / "model").rename(target)
    return target.absolute()


def _export(run: Run, target: Path) -> int:
    """In a process of its own, so that this one never loads JAX; returns the step."""
    command = [sys.executable, "-m", "colossus.cli", "export", str(run.folder), "--to", str(target), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words, _, hint = done.stderr.strip().removeprefix("error: ").partition("\n\nhint: ")
        raise RunError(words or f"{run.folder} could not be exported", hint=hint or None)
    return int(json.loads(done.stdout)["step"])


def check_exposure(host: str, api_keys: Path | None, *, no_auth: bool) -> None:
    """A server that others can reach asks for keys, unless its owner says otherwise."""
    if host not in _LOOPBACK and api_keys is None and not no_auth:
        rule = "lets others reach this server, and no key is asked for"
        hint = "colossus serve --new-key NAME keys.txt, then --api-keys keys.txt; or say --no-auth"
        raise SpecError("colossus serve", [Problem(path="--host", value=host, rule=rule, hint=hint)])


def serve_folder(runs: Path, name: str) -> Path:
    """A new folder for this server's logs: ``RUNS/serve/NAME-N``."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "model"
    place = runs / "serve"
    place.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (made := place / f"{safe}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return made


def greeting(address: str, model: str, *, needs_key: bool) -> str:
    """What a user does next."""
    key = ' -H "Authorization: Bearer $COLOSSUS_API_KEY"' if needs_key else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    given = 'os.environ["COLOSSUS_API_KEY"]' if needs_key else '"none"'
    return "\n".join(
        [
            f"ready: {address}",
            f"  page    {address}/",
            f"  curl    curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
            f'  python  openai.OpenAI(base_url="{address}/v1", api_key={given})',
            f"  chat    colossus chat {address}",
        ]
    )


def facts(address: str, name: str, folder: Path) -> dict[str, Any]:
    """The same for programs."""
    return {"address": address, "base_url": f"{address}/v1", "model": name, "folder": str(folder)}
