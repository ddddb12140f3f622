"""vLLM without HTTP, for the side-by-side; runs in vLLM's own environment: VLLM/bin/python benchmarks/peers/serve_vllm.py MODEL [--dtype float32]"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from lines import answer


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-running", type=int, default=32)
    a = parser.parse_args()
    llm = LLM(model=a.model, dtype=a.dtype, max_num_seqs=a.max_running, max_model_len=512, enable_prefix_caching=False)

    def run(prompts: list[list[int]], output_tokens: int) -> int:
        wanted = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        done = llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], wanted, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in done)

    answer(run, llm.get_tokenizer().vocab_size)


if __name__ == "__main__":
    main()
