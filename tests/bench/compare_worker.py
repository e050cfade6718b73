"""One measurement for compare.py: `compare_worker.py PEER FOLDER PROMPT NEW` prints speeds and peak memory as JSON.

Each peer runs its own greedy loop over its own cache, after a first round to warm up.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice


def macllm(folder: str, prompt: list[int], new: int) -> Callable[[], Iterator[object]]:
    """macllm's loop."""
    from macllm.checkpoint import load
    from macllm.generate.decode import decode, prefill
    from macllm.generate.request import SamplingParams
    from macllm.generate.sampler import Sampler

    model, _ = load(folder)

    def run() -> Iterator[object]:
        cache = model.make_cache()
        greedy = Sampler(SamplingParams(temperature=0.0), 0, prompt, model.spec.embedding.vocab_size)
        steps = prefill(model, cache, prompt, 512)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                logits = end.value
                break
        return decode(model, cache, logits, greedy, max_tokens=new, alternatives=None)

    return run


def mlx_lm(folder: str, prompt: list[int], new: int) -> Callable[[], Iterator[object]]:
    """mlx-lm's loop."""
    from pathlib import Path

    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    return lambda: generate_step(mx.array(prompt), model, max_tokens=new)


def torch(folder: str, prompt: list[int], new: int) -> Callable[[], Iterator[object]]:
    """transformers' model in a plain loop."""
    import torch as pt
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()

    def run() -> Iterator[object]:
        cache, tokens = DynamicCache(), pt.tensor([prompt])
        with pt.inference_mode():
            for _ in range(new):
                logits = model(tokens, past_key_values=cache, logits_to_keep=1).logits
                tokens = logits[:, -1:].argmax(-1)
                yield tokens.item()

    return run


def main() -> None:
    """Read the command line and measure."""
    peer, folder, prompt_tokens, new = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    prompt = [(i * 7919 + 13) % 8000 for i in range(prompt_tokens)]
    run = {"macllm": macllm, "mlx-lm": mlx_lm, "torch": torch}[peer](folder, prompt, new)
    list(islice(run(), 2))
    began = time.perf_counter()
    tokens = run()
    next(tokens)
    first = time.perf_counter()
    count = sum(1 for _ in tokens)
    last = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)
    speeds = {"prompt tokens/s": prompt_tokens / (first - began), "decode tokens/s": count / (last - first)}
    print(json.dumps({**speeds, "peak MB": peak}))


if __name__ == "__main__":
    main()
