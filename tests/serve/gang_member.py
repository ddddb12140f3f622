"""Programs for test_gang: a follower of a tiny model, and a leader that answers prompts and prints the tokens."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from colossus.serve import engine as engine_module
from colossus.serve.engine import Engine
from colossus.serve.gang import Gang, follow
from colossus.serve.options import EngineOptions
from colossus.serve.request import Finish, Request, Sampling
from tests.serve.models import CARDS, TinyModel


def open_model(path: Path) -> TinyModel:
    return TinyModel("tiny", CARDS[path.name].model_copy(update={"vocab_size": 64}))


def lead(order: dict[str, Any]) -> None:
    """Prints each request's tokens, or goes on answering where it is told to go on for ever."""
    engine_module.Gang = partial(Gang, program=("-m", "tests.serve.gang_member", "follow"))  # type: ignore[assignment, misc]
    sizes = {"max_running": 4, "max_step_tokens": 24, "kv_bytes": 300_000}
    options = EngineOptions(model=Path(order["model"]), **(sizes | order["options"]))
    engine = Engine(open_model(options.model), options)
    engine.warm_up(lambda _: None)
    print("ready", flush=True)
    while True:
        answers: dict[str, list[int]] = {}
        for number, wish in enumerate(order["wishes"]):
            engine.add(Request(id=str(number), prompt=tuple(wish.pop("prompt")), sampling=Sampling(**wish)))
            wish["prompt"] = [1, 2, 3]
        while engine.has_work:
            for output in engine.step():
                assert output.finish is not Finish.ERROR, output.error
                answers.setdefault(output.id, []).extend(output.tokens)
        if not order.get("for_ever"):
            break
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "follow":
        follow(int(sys.argv[2]), sys.argv[3], open_model)
    else:
        lead(json.loads(sys.argv[2]))
