"""A real process that speaks the engine's protocol and computes nothing: SOCKET INDEX GENERATION OPTIONS_JSON.

Its answers are a function of prompt, seed and place, as a real engine's are. The options say how it should misbehave.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from colossus.serve.backend import EngineInfo
from colossus.serve.request import EngineStats, Finish, Output, Request
from colossus.serve.worker import Gone, Line

VOCAB = 1000
PAGE_TOKENS = 16
CRASH, HANG, SEGFAULT, EXIT = 901, 902, 903, 904  # a prompt that begins with one of these does it


def token_at(request: Request, place: int) -> int:
    return (sum(request.prompt) + 7 * request.sampling.seed + 31 * place) % VOCAB


class ScriptedEngine:
    """``token_s`` a step, in which each running request gets ``step_tokens`` tokens."""

    def __init__(self, line: Line, options: dict[str, Any]) -> None:
        self.line, self.options = line, options
        self.waiting: list[Request] = []
        self.running: dict[str, tuple[Request, int]] = {}
        self.num_steps = self.num_output_tokens = self.num_prompt_tokens = 0

    def run(self) -> None:
        told_s, was_busy = 0.0, True
        while True:
            busy = bool(self.running or self.waiting)
            if time.monotonic() - told_s > 0.1 or (was_busy and not busy):
                told_s = time.monotonic()
                self.line.say("stats", stats=asdict(self.stats()))
            was_busy = busy
            for message in self.line.hear(wait=not busy):
                if message["kind"] == "add":
                    self.waiting.append(Request.from_wire(message["request"]))
                elif message["kind"] == "abort":
                    self.running.pop(message["id"], None)
                    self.waiting = [one for one in self.waiting if one.id != message["id"]]
                elif message["kind"] == "stop" and not self.options.get("ignores_stop"):
                    return
            if self.waiting or self.running:
                self.step()

    def step(self) -> None:
        while self.waiting and len(self.running) < self.options.get("max_running", 4):
            request = self.waiting.pop(0)
            self.num_prompt_tokens += len(request.prompt)
            self.running[request.id] = (request, 0)
        time.sleep(self.options.get("token_s", 0.001))
        self.num_steps += 1
        outputs = []
        for request, place in list(self.running.values()):
            self.misbehave(request, place)
            end = min(place + self.options.get("step_tokens", 1), request.sampling.max_tokens)
            tokens = tuple(token_at(request, at) for at in range(place, end))
            finish = Finish.LENGTH if end == request.sampling.max_tokens else None
            outputs.append(Output(id=request.id, tokens=tokens, finish=finish, num_cached_tokens=0 if place == 0 else None))
            self.num_output_tokens += len(tokens)
            self.running[request.id] = (request, end)
            if finish:
                del self.running[request.id]
        self.line.say("outputs", outputs=[output.to_wire() for output in outputs])

    def misbehave(self, request: Request, place: int) -> None:
        if place < len(request.prompt) - 1:  # as many tokens as the prompt has beside the order come first
            return
        match request.prompt[0]:
            case 901:
                raise RuntimeError("a step failed on purpose")
            case 902:
                time.sleep(3600)
            case 903:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 904:
                os._exit(7)

    def stats(self) -> EngineStats:
        return EngineStats(
            time_s=time.time(), num_running=len(self.running), num_waiting=len(self.waiting), num_pages=100, num_used_pages=len(self.running),
            num_cached_pages=0, num_steps=self.num_steps, num_prompt_tokens=self.num_prompt_tokens, num_output_tokens=self.num_output_tokens,
        )  # fmt: skip


def main(path: str, index: int, generation: int, options: dict[str, Any]) -> int:
    if "fails_before_hello" in options:
        print("no such device: " + options["fails_before_hello"], file=sys.stderr)
        return 1
    line = Line(path)
    line.say("hello", index=index, generation=generation, pid=os.getpid())
    if generation <= options.get("num_failing_starts", 0):
        return 9
    if "fails_for_good" in options:
        line.say("failed", error=options["fails_for_good"], permanent=True)
        return 3
    time.sleep(options.get("start_s", 0.0))
    line.say("progress", text="compiling 3 programs")
    info = EngineInfo(
        model="scripted", max_sequence_tokens=4096, vocab_size=VOCAB, num_pages=100, page_tokens=PAGE_TOKENS, weights="float32", cache="float32",
        cache_bytes=3 << 29, device="cpu", start_s=0.1, num_programs=3,
    )  # fmt: skip
    line.say("ready", info=asdict(info))
    try:
        ScriptedEngine(line, options).run()
    except Gone:
        return 4
    except RuntimeError as error:
        line.say("failed", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
    sys.stderr.flush()
    os._exit(code)
