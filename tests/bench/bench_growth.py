"""Time and memory of a decoding step as the context grows, with a dense and an 8-bit cache.

A model of SmolLM-135M's shape with random weights. `python tests/bench/bench_growth.py [q4 bf16 ...]`; checkpoints are
made in $MACLLM_BENCH, else in a folder for temporary files.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from shapes import checkpoint
from timing import Series, print_json, print_table, take_turns

from macllm.checkpoint import load_model
from macllm.nn.state.cache import Cache
from macllm.ops.kv import quantize

CONTEXTS = (256, 8192)
STEPS, ROUNDS = 4, 5
TOKEN = [[7]]


def main() -> None:
    """Measure, print a table and a line of JSON."""
    folder = Path(os.environ.get("MACLLM_BENCH") or Path(tempfile.gettempdir()) / "macllm-bench")
    tables: dict[str, dict[str, Series]] = {}
    ratios: dict[str, float] = {}
    for width in sys.argv[1:] or ["q4", "bf16"]:
        model: Any = load_model(checkpoint("M", width, folder))
        caches = {(bits, context): filled(model, bits, context) for bits in (None, 8) for context in CONTEXTS}
        runs = {f"{name(bits)} {context}": partial(step, model, cache) for (bits, context), cache in caches.items()}
        table = tables[f"{width} step ms"] = take_turns(runs, ROUNDS)
        for bits in (None, 8):
            short, long = (table[f"{name(bits)} {context}"].median for context in CONTEXTS)
            ratios[f"{width}, {name(bits)} step at {CONTEXTS[1]} over {CONTEXTS[0]}"] = long / short
            ratios[f"{width}, {name(bits)} memory over cache"] = memory(model, bits)
    for title, table in tables.items():
        print(f"{title}:")
        print_table(table, "ms")
    for title, ratio in ratios.items():
        print(f"{title}: {ratio:.3f}")
    print_json(Path(__file__).stem, tables, ratios)


def name(bits: int | None) -> str:
    """Format of keys and values."""
    return "dense" if bits is None else f"{bits} bit"


def filled(model: Any, bits: int | None, context: int) -> Cache:
    """A cache that holds `context` slots of random keys and values."""
    cache, spec = model.make_cache(kv_bits=bits), model.spec.decoder.layers[0].mixer
    shape = (1, spec.num_kv_heads, context, spec.head_dim)
    layers = []
    for _ in cache.layers:
        rows = mx.random.normal(shape), mx.random.normal(shape)
        layers.append(rows if bits is None else tuple(part for each in rows for part in quantize(each, bits, 64)))
        mx.eval(layers[-1])
    cache.restore(layers, context, [spec.head_dim] * len(layers))
    mx.eval(model(mx.array(TOKEN), cache=cache), cache.state)
    return cache


def step(model: Any, cache: Cache) -> float:
    """Milliseconds of a decoding step with a constant context."""
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        mx.eval(model(mx.array(TOKEN), cache=cache))
        times.append((time.perf_counter() - began) * 1e3)
    cache.cut(cache.length - STEPS)
    return Series(tuple(times)).median


def memory(model: Any, bits: int | None) -> float:
    """Growth of memory over 600 tokens read and 300 decoded, relative to the cache after them."""
    mx.clear_cache()
    before = mx.get_active_memory()
    cache = model.make_cache(kv_bits=bits)
    mx.eval(model(mx.array([[5 + n for n in range(600)]]), cache=cache)[:, -1], *cache.state)
    for _ in range(300):
        mx.eval(model(mx.array(TOKEN), cache=cache))
    mx.eval(cache.state)
    return (mx.get_active_memory() - before) / cache.nbytes


if __name__ == "__main__":
    main()
