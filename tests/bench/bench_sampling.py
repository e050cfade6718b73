"""Cost of sampling: primitives and time from logits to token, by settings and vocabulary.

Each setting draws 32 tokens one after another from random logits, each draw queued before the one before it is read, as
in generation, with 200 tokens of history. `python tests/bench/bench_sampling.py [native stock]`.
"""

from __future__ import annotations

import io
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from timing import Series, print_json, print_table, take_turns

VOCABULARIES = {"8k": 8192, "49k": 49152, "152k": 151936}
STEPS, ROUNDS, HISTORY = 32, 7, 200
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "macllm's default": {"temperature": 0.7, "min_p": 0.05},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "top-k and top-p": {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    "the bundled model's": {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.05},
    "greedy, repetition": {"temperature": 0.0, "repetition_penalty": 1.05},
    "all three penalties": {
        "temperature": 0.7,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.2,
        "penalty_window": 64,
    },
    "logit bias": {"temperature": 0.7, "min_p": 0.05, "logit_bias": ((3, 2.0), (7, -float("inf")))},
    "DRY": {"temperature": 0.7, "min_p": 0.05, "dry_multiplier": 0.8},
    "typical": {"temperature": 0.7, "typical_p": 0.9},
    "XTC": {"temperature": 0.7, "min_p": 0.05, "xtc_probability": 0.5},
    "5 logprobs": {"temperature": 0.7, "min_p": 0.05, "alternatives": 5},
}


def main() -> None:
    """Measure, print a table for each vocabulary and a line of JSON."""
    choices = sys.argv[1:] or ["native"]
    tables: dict[str, dict[str, Series]] = {}
    for name, size in VOCABULARIES.items():
        contestants = {
            f"{setting}, {choice}": partial(microseconds, setting, choice, size)
            for setting in SETTINGS
            for choice in choices
        }
        table = take_turns(contestants, ROUNDS)
        print(f"{name} tokens:")
        print_table({f"{key} ({primitives(*key.rsplit(', ', 1), size)} primitives)": table[key] for key in table}, "us")
        print()
        tables[f"{name} us"] = table
    print_json(Path(__file__).stem, tables, {})


def drawn(setting: str, choice: str, size: int, steps: int) -> list[Any]:
    """The arrays of each of `steps` draws, the last of which is not evaluated."""
    import mlx.core as mx
    import numpy as np

    from macllm.generation.request import SamplingParams
    from macllm.generation.sampling.sampler import Sampler, logprobs_of
    from macllm.ops.dispatch import using

    options = dict(SETTINGS[setting])
    alternatives = options.pop("alternatives", None)
    random = np.random.default_rng(0)
    logits = mx.array(random.normal(size=size).astype(np.float32) * 4)
    mx.eval(logits)
    history = random.integers(0, size, HISTORY).tolist()
    arrays: list[Any] = []
    with using(choice):  # type: ignore[arg-type]
        sampler = Sampler(SamplingParams(**options), 1, history, size)
        for step in range(steps):
            before = arrays
            token = sampler(logits, step)
            arrays = [token, *(() if alternatives is None else logprobs_of(logits, token, alternatives))]
            if step < steps - 1:
                mx.async_eval(arrays)
            if before:
                mx.eval(before)
    return arrays


def microseconds(setting: str, choice: str, size: int) -> float:
    """Microseconds of one draw, without the work that is done once per completion."""
    taken = []
    for steps in (2, STEPS + 2):
        began = time.perf_counter()
        drawn(setting, choice, size, steps)
        taken.append(time.perf_counter() - began)
    return (taken[1] - taken[0]) / STEPS * 1e6


def primitives(setting: str, choice: str, size: int) -> int:
    """Number of primitives of the last draw."""
    import mlx.core as mx

    graph = io.StringIO()
    mx.export_to_dot(graph, *drawn(setting, choice, size, 4))
    return sum("rectangle" in line for line in graph.getvalue().splitlines())


if __name__ == "__main__":
    main()
