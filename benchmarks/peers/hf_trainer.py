"""The peer: transformers' LlamaForCausalLM under its own Trainer, on the CPU, float32, as its documentation shows it.

    python benchmarks/peers/hf_trainer.py --layers 6 --width 384 --batch 16 --length 256 --steps 12

Prints one JSON line: seconds of each step after the first ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Tokens(torch.utils.data.Dataset):
    def __init__(self, count: int, length: int, vocab: int) -> None:
        self.rows = torch.randint(0, vocab, (count, length))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.marks.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("layers", 6), ("width", 384), ("batch", 16), ("length", 256), ("vocab", 4096), ("steps", 12), ("warmup", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--hidden", type=int, default=1024)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    config = LlamaConfig(
        vocab_size=a.vocab,
        hidden_size=a.width,
        intermediate_size=a.hidden,
        num_hidden_layers=a.layers,
        num_attention_heads=a.width // 64,
        max_position_embeddings=a.length,
        tie_word_embeddings=False,
    )
    model, clock = LlamaForCausalLM(config), Clock()
    total = a.warmup + a.steps + 1
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=a.batch,
            max_steps=total,
            learning_rate=1e-3,
            weight_decay=0.1,
            max_grad_norm=1.0,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=Tokens(total * a.batch, a.length, a.vocab), callbacks=[clock]).train()
    times = [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]
    print(json.dumps({"steps_s": times[a.warmup :], "parameters": model.num_parameters()}))


if __name__ == "__main__":
    main()
