"""One measurement for compare.py, `compare_worker.py JOB`: speeds and peak memory. JSON both ways.

Each peer runs its own loops: greedily over its own cache, or training steps as its users take them.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from compare_table import CACHE, DECODE, LONG, PEAK, PROMPT, SHORT, TRAIN, WEIGHTS, Load

Job = dict[str, Any]


def macllm(folder: str, prompt: list[int], new: int) -> Callable[[], Iterator[object]]:
    """macllm's loop."""
    from macllm.checkpoint import load_model
    from macllm.generation.decode import decode, prefill
    from macllm.generation.request import SamplingParams
    from macllm.generation.sampling.sampler import Sampler

    model: Any = load_model(Path(folder))

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


def inference(job: Job, load: Load) -> dict[str, float]:
    """Speeds of prefill, first token and decoding."""
    prompt = [(i * 7919 + 13) % 8000 for i in range(load.prompt)]
    run = {"macllm": macllm, "mlx-lm": mlx_lm, "torch": torch}[job["peer"]](job["folder"], prompt, load.new)
    if load.seconds:
        list(islice(run(), 3))
    firsts, rests, end = [], [], time.perf_counter() + load.seconds
    while not firsts or time.perf_counter() < end:
        began, tokens = time.perf_counter(), iter(run())
        next(tokens)
        first = time.perf_counter()
        count = sum(1 for _ in tokens)
        firsts.append(load.prompt / (first - began))
        rests.append(count / (time.perf_counter() - first))
    weights = sum(path.stat().st_size for path in Path(job["folder"]).glob("*.safetensors")) / 1e6
    return {PROMPT: statistics.median(firsts), DECODE: statistics.median(rests), WEIGHTS: weights}


def growth(job: Job, load: Load) -> dict[str, float]:
    """Milliseconds of a decoding step after 256 and 8192 tokens in an 8-bit cache, and its bytes."""
    import mlx.core as mx

    from macllm.checkpoint import load_model

    model: Any = load_model(Path(job["folder"]))
    attention, layers = model.spec.decoder.layers[0].mixer, len(model.spec.decoder.layers)
    token, held, caches = mx.array([[7]]), {}, {}

    def rows(layer: Any, context: int) -> tuple[mx.array, ...]:
        drawn = mx.random.normal((1, attention.num_kv_heads, context, attention.head_dim))
        return (*layer.codec.encode(drawn), *layer.codec.encode(drawn))

    for context in (0, 256, 8192):  # 0 to warm up
        cache = caches[context] = model.make_cache(kv_bits=8)
        if context:
            cache.restore([rows(layer, context) for layer in cache.layers], context, [attention.head_dim] * layers)
        mx.eval(model(token, cache=cache), cache.state)
        mx.synchronize()
        held[context] = mx.get_active_memory()
    taken: dict[int, list[float]] = {256: [], 8192: []}
    end = time.perf_counter() + load.seconds
    while len(taken[256]) < 9 or time.perf_counter() < end:
        for context, times in taken.items():
            began = time.perf_counter()
            mx.eval(model(token, cache=caches[context]))
            times.append(time.perf_counter() - began)
    # 8 bits per number, and a float32 scale and bias for every 64. A full buffer grows to the new token and 256 more,
    # rounded up to a multiple of 256.
    slot = 2 * layers * attention.num_kv_heads * (attention.head_dim + 8 * attention.head_dim // 64)
    slots = -(-(8192 + 1 + 256) // 256) * 256
    return {
        SHORT: statistics.median(taken[256]) * 1e3,
        LONG: statistics.median(taken[8192]) * 1e3,
        CACHE: (held[8192] - held[256]) / (slot * slots),
    }


def training(job: Job, load: Load) -> dict[str, float]:
    """Tokens a second of training steps."""
    import compare_training

    if job.get("with_blas"):
        compare_training.put_blas_under_mlx()
    step = compare_training.STEPS[job["peer"]](job["folder"], job["task"] == "lora", load)
    if load.seconds:
        step()
    taken, end = [], time.perf_counter() + load.seconds
    while not taken or time.perf_counter() < end:
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return {TRAIN: load.batch * load.length / statistics.median(taken)}


def peak_bytes() -> int:
    """Peak resident bytes of this process; getrusage includes the parent's."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Read the job and do it."""
    job = json.loads(sys.argv[1])
    measure = {"inference": inference, "growth": growth}.get(job["task"], training)
    print(json.dumps({**measure(job, Load(**job["load"])), PEAK: peak_bytes() / 1e6}))


if __name__ == "__main__":
    main()
