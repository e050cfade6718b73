"""Tokens a second of decoding and prefill, and how a decoding step grows with the context.

Models with random float32 weights in the shapes of the bundled model, SmolLM-135M and Qwen2.5-0.5B: macllm, macllm on
MLX's own ops (both multiply by OpenBLAS), and mlx-lm as it is installed, each in a process of its own that reads the
same checkpoint and waits for its turns. `python tests/bench/bench_decode.py [maclet smollm-135m qwen2.5-0.5b]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from timing import Series, print_json, print_table, take_turns

COMMON = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 10000.0, "hidden_act": "silu"}
SHAPES: dict[str, dict[str, Any]] = {
    "maclet": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 3072,
        "max_position_embeddings": 16384,
    },
    "smollm-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 16384,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 16384,
    },
}
# Work of one turn: tokens decoded after a prompt of PROMPT, tokens of a prefill. mlx-lm gets less, to end in seconds.
WORK = {
    "maclet": {"decode": 256, "prefill": 512},
    "smollm-135m": {"decode": 24, "prefill": 128},
    "qwen2.5-0.5b": {"decode": 8, "prefill": 64},
}
PEER_SHARE = 8
PROMPT, SHORT, LONG, STEPS = 16, 256, 8192, 6
ROUNDS = 5


def main() -> None:
    """Measure, print a table for each shape and a line of JSON."""
    names = sys.argv[1:] or list(SHAPES)
    tables: dict[str, dict[str, Series]] = {}
    ratios: dict[str, float] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            write(SHAPES[name], Path(folder))
            workers = {kind: Worker(kind, folder) for kind in ("macllm", "stock", "mlx-lm")}
            measured = measure(name, workers)
            for worker in workers.values():
                worker.close()
        tables |= {f"{name} {task}": table for task, table in measured.items()}
        decode, growth = measured["decode tokens/s"], measured["step ms"]
        ratios[f"{name} decode over mlx-lm"] = decode["macllm"].median / decode["mlx-lm"].median
        ratios[f"{name} decode over stock ops"] = decode["macllm"].median / decode["stock"].median
        ratios[f"{name} step at {LONG} over {SHORT}"] = (
            growth[f"macllm {LONG}"].median / growth[f"macllm {SHORT}"].median
        )
    for title, table in tables.items():
        print(f"{title}:")
        print_table(table, title.rpartition(" ")[2])
        print()
    print_json(Path(__file__).stem, tables, ratios)


def measure(name: str, workers: dict[str, Worker]) -> dict[str, dict[str, Series]]:
    """The tables of one shape, measured by turns."""

    def rate(kind: str, task: str) -> float:
        count = WORK[name][task] if kind != "mlx-lm" else max(WORK[name][task] // PEER_SHARE, 3)
        return count / workers[kind].ask(task, count)

    results = {
        f"{task} tokens/s": take_turns({kind: partial(rate, kind, task) for kind in workers}, ROUNDS)
        for task in ("decode", "prefill")
    }
    growing = {
        f"{kind} {context}": partial(lambda kind, context: workers[kind].ask("step", context) * 1e3, kind, context)
        for kind in ("macllm", "stock")
        for context in (SHORT, LONG)
    }
    return {**results, "step ms": take_turns(growing, ROUNDS)}


class Worker:
    """A contestant's process, which runs tasks on request."""

    def __init__(self, kind: str, folder: str) -> None:
        # mlx-lm runs on MLX's unmodified wheel, without macllm's kernels.
        environment = {**os.environ, "MACLLM_NATIVE": "0"} if kind == "mlx-lm" else dict(os.environ)
        command = [sys.executable, __file__, "--worker", kind, folder]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, task: str, count: int) -> float:
        """Seconds of a task."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{task} {count}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def write(config: dict[str, Any], folder: Path) -> None:
    """A checkpoint with random float32 weights."""
    import mlx.core as mx

    from macllm import checkpoint, families
    from macllm.families.config import Config
    from macllm.nn.models import build

    mx.random.seed(0)
    config = {**COMMON, **config}
    model: Any = build(families.spec(Config(config, ())))
    model.info = replace(model.info, config=config)
    checkpoint.save(model, None, folder)


def work(kind: str, folder: str) -> None:
    """Answer each line of stdin, `task count`, with its seconds."""
    run = MlxLm(folder) if kind == "mlx-lm" else Ours(folder, "stock" if kind == "stock" else "native")
    for line in sys.stdin:
        task, count = line.split()
        print(getattr(run, task)(int(count)), flush=True)


class Ours:
    """macllm's loops, greedy."""

    def __init__(self, folder: str, choice: Any) -> None:
        from macllm.checkpoint import load_model
        from macllm.ops.dispatch import using

        self._using = using(choice)
        self._using.__enter__()
        self._model: Any = load_model(Path(folder))

    def decode(self, count: int) -> float:
        """Seconds for `count` tokens after a short prompt."""
        from macllm.generation.decode import decode
        from macllm.generation.request import SamplingParams
        from macllm.generation.sampling.sampler import Sampler

        cache = self._model.make_cache()
        logits = self._prefilled(cache, PROMPT)
        sampler = Sampler(SamplingParams(temperature=0), 0, [], logits.shape[-1])
        tokens = decode(self._model, cache, logits, sampler, max_tokens=count + 1, alternatives=None)
        next(tokens)
        began = time.perf_counter()
        assert sum(1 for _ in tokens) == count
        return time.perf_counter() - began

    def prefill(self, count: int) -> float:
        """Seconds of the prefill of `count` tokens."""
        began = time.perf_counter()
        self._prefilled(self._model.make_cache(), count)
        return time.perf_counter() - began

    def step(self, context: int) -> float:
        """Seconds of a step after `context` tokens of random keys and values."""
        import mlx.core as mx

        cache, spec = self._model.make_cache(), self._model.spec.decoder.layers[0].mixer
        shape = (1, spec.num_kv_heads, context, spec.head_dim)
        rows = [(mx.random.normal(shape), mx.random.normal(shape)) for _ in cache.layers]
        cache.restore(rows, context, [spec.head_dim] * len(rows))
        token, times = mx.array([[7]]), []
        mx.eval(self._model(token, cache=cache), cache.state)
        mx.eval(self._model(token, cache=cache))
        for _ in range(STEPS):
            began = time.perf_counter()
            mx.eval(self._model(token, cache=cache))
            times.append(time.perf_counter() - began)
        return Series(tuple(times)).median

    def _prefilled(self, cache: Any, count: int) -> Any:
        import mlx.core as mx

        from macllm.generation.decode import prefill

        reading = prefill(self._model, cache, [5 + n % 1000 for n in range(count)], 512)
        while True:
            try:
                next(reading)
            except StopIteration as end:
                mx.eval(end.value, cache.state)
                return end.value


class MlxLm:
    """mlx-lm's generation loop, greedy."""

    def __init__(self, folder: str) -> None:
        from mlx_lm.utils import load_model

        self._model, _ = load_model(Path(folder))

    def decode(self, count: int) -> float:
        """Seconds for `count` tokens after a short prompt."""
        return self._seconds(PROMPT, count)[1]

    def prefill(self, count: int) -> float:
        """Seconds of the prefill of `count` tokens."""
        return self._seconds(count, 1)[0]

    def _seconds(self, prompt: int, count: int) -> tuple[float, float]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        began = time.perf_counter()
        tokens = generate_step(mx.array([5 + n % 1000 for n in range(prompt)]), self._model, max_tokens=count + 1)
        next(tokens)
        first = time.perf_counter()
        assert sum(1 for _ in tokens) == count
        return first - began, time.perf_counter() - first


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
