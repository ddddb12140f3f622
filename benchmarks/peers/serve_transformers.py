"""transformers without HTTP, for the side-by-side: python benchmarks/peers/serve_transformers.py MODEL [--way continuous|static]"""

from __future__ import annotations

import argparse

import torch
from lines import answer
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--way", choices=["continuous", "static"], default="continuous")
    a = parser.parse_args()
    attention = "paged|sdpa" if a.way == "continuous" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation=attention).eval()

    def continuous(prompts: list[list[int]], output_tokens: int) -> int:
        wanted = GenerationConfig(max_new_tokens=output_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        done = model.generate_batch(inputs=prompts, generation_config=wanted, progress_bar=False)
        return sum(len(one.generated_tokens) for one in done.values())

    def static(prompts: list[list[int]], output_tokens: int) -> int:
        wanted = GenerationConfig(max_new_tokens=output_tokens, min_new_tokens=output_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.inference_mode():
            done = model.generate(torch.tensor(prompts), generation_config=wanted)
        return int(done.shape[0] * (done.shape[1] - len(prompts[0])))

    answer(continuous if a.way == "continuous" else static, model.config.vocab_size)


if __name__ == "__main__":
    main()
