"""Native CPU kernels against MLX's ops on the same BLAS, by turns.

Milliseconds are medians; the last line is one JSON object. `stock` is MLX with OpenBLAS under its matmul, `reference
BLAS` what the wheel brings. With `--torch`, a training step of the same model in transformers as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from macllm import families
from macllm.generation.request import SamplingParams
from macllm.generation.sampling.sampler import Sampler
from macllm.nn.models import build
from macllm.ops import attention, cpu, cross_entropy, gate, kv, linear, norm, quantized, rope
from macllm.ops.cpu import blas
from macllm.ops.dispatch import using
from macllm.train.optim import AdamW, clip_factor, global_norm

Run = Callable[[], Any]

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
MATMUL = """
import time, statistics, mlx.core as mx
import macllm.ops
a, b = mx.random.normal((512, 512)), mx.random.normal((1536, 512))
mx.eval(a, b, a @ b.T)
def once():
    begin = time.perf_counter()
    mx.eval(a @ b.T)
    return time.perf_counter() - begin
print(statistics.median(once() for _ in range(7)) * 1e3)
"""


def once(run: Run) -> float:
    """Milliseconds of one run."""
    begin = time.perf_counter()
    mx.eval(run())
    return (time.perf_counter() - begin) * 1e3


def versus(run: Run, repeats: int) -> dict[str, float]:
    """Median milliseconds of a run with MLX's ops and with native kernels, by turns."""
    times: dict[str, list[float]] = {"stock": [], "native": []}
    for turn in range(repeats + 1):
        for name in ("stock", "native"):
            with using(name):  # type: ignore[arg-type]
                taken = once(run)
            if turn:
                times[name].append(taken)
    result = {f"{name}_ms": round(statistics.median(taken), 3) for name, taken in times.items()}
    ratios = [a / b for a, b in zip(times["stock"], times["native"], strict=True)]
    return {**result, "speedup": round(statistics.median(ratios), 1)}


def matmul() -> dict[str, float]:
    """A product of 512x512 and 512x1536, each in a new process."""

    def measured(native: str) -> float:
        environment = {**os.environ, "MACLLM_NATIVE": native}
        done = subprocess.run(
            [sys.executable, "-c", MATMUL], env=environment, capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    pairs = [(measured("0"), measured("1")) for _ in range(3)]
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    flops = 2 * 512 * 512 * 1536
    return {
        "reference_blas_ms": round(before, 2),
        "openblas_ms": round(after, 3),
        "gflops": round(flops / after / 1e6, 1),
        "speedup": round(before / after, 1),
    }


def small_ops() -> dict[str, Run]:
    """Each op on its benchmark shape, forward, and forward with backward."""
    x, y, w = mx.random.normal((512, 2048)), mx.random.normal((512, 2048)), mx.ones(2048)
    logits, targets = mx.random.normal((256, 4096)), mx.random.randint(0, 4096, (256,))
    q, k, v, g = (mx.random.normal((4, 4, 256, 64)) for _ in range(4))
    waves = mx.array(10_000 ** (np.arange(0, 64, 2) / 64), mx.float32)
    mx.eval(x, y, w, logits, targets, q, k, v, g, waves)

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention.attention(q, kv.Dense(k, v), scale=0.125, mask="causal")

    def both(f: Callable[..., mx.array], *inputs: mx.array) -> Run:
        gradient = mx.grad(lambda *a: f(*a).sum(), argnums=tuple(range(len(inputs))))
        return lambda: gradient(*inputs)

    return {
        "silu*up 1M": lambda: gate.gated(x, y, "silu"),
        "silu*up 1M fwd+bwd": both(lambda a, b: gate.gated(a, b, "silu"), x, y),
        "gelu 1M fwd+bwd": both(lambda a: gate.activate(a, "gelu"), x),
        "rms_norm 1M fwd+bwd": both(lambda a, b: norm.rms_norm(a, b, 1e-5), x, w),
        "layer_norm 1M fwd+bwd": both(lambda a, b: norm.layer_norm(a, b, b, 1e-5), x, w),
        "rope 4x4x256x64 fwd+bwd": both(lambda a: rope.rope(a, waves, 0), q),
        "cross_entropy 256x4096": lambda: cross_entropy.cross_entropy(logits, targets),
        "cross_entropy 256x4096 fwd+bwd": both(lambda a: cross_entropy.cross_entropy(a, targets), logits),
        "attention causal 4x4x256x64": lambda: attend(q, k, v),
        "attention causal 4x4x256x64 fwd+bwd": both(lambda q, k, v: attend(q, k, v) * g, q, k, v),
    }


def linears() -> dict[str, Run]:
    """Linear layers of the 0.5B shape, weights in 16 and 32 bits, for one, a few and many rows."""
    weight = mx.random.normal((4864, 896))
    runs: dict[str, Run] = {}
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        w = weight.astype(dtype)
        for count in (1, 4, 16, 512):
            x = mx.random.normal((count, 896))
            mx.eval(w, x)
            runs[f"linear {count}x896x4864 {str(dtype)[9:]}"] = lambda x=x, w=w: linear.linear(x, w)
        gradient = mx.grad(lambda x, w: linear.linear(x, w).sum(), argnums=(0, 1) if dtype == mx.float32 else 0)
        runs[f"linear 512x896x4864 {str(dtype)[9:]} fwd+bwd"] = lambda x=x, w=w, gradient=gradient: gradient(x, w)
    return runs


def updates() -> dict[str, Run]:
    """The norm of 5.2 M gradients in the layout of a linear layer's backward, and their AdamW step."""
    shapes = [(4096, 256)] + [(256, 256)] * 24 + [(704, 256)] * 12 + [(256, 704)] * 6
    weights = {str(n): mx.random.normal(shape) for n, shape in enumerate(shapes)}
    gradients = {name: mx.random.normal(weight.shape) for name, weight in weights.items()}
    optimizer, scale = AdamW(0.9, 0.95, 1e-8, 0.1), mx.array(0.5)
    state = optimizer.init(weights)
    mx.eval(weights, gradients, state.mean, state.square)

    def step() -> list[Any]:
        new, moved = optimizer.update(weights, gradients, state, 1e-3, scale)
        return [new, moved.mean, moved.square]

    return {"norm of 5.2M": lambda: global_norm(gradients), "adamw of 5.2M": step}


def draws() -> dict[str, Run]:
    """Sampling from a vocabulary of 151,936."""
    logits = mx.random.normal((151_936,)) * 4
    mx.eval(logits)
    kinds = {
        "temperature": SamplingParams(temperature=0.8),
        "top-k 40": SamplingParams(top_k=40),
        "top-p 0.95": SamplingParams(top_p=0.95),
        "min-p 0.05": SamplingParams(min_p=0.05),
        "all three": SamplingParams(temperature=0.7, top_k=40, top_p=0.95, min_p=0.05),
    }
    samplers = {name: Sampler(params, 1, (), logits.size) for name, params in kinds.items()}
    return {f"draw by {name}": lambda sampler=sampler: sampler(logits, 7) for name, sampler in samplers.items()}


def softmax_1m(repeats: int) -> dict[str, float]:
    """The softmax kernel, called directly, since `ops` has no softmax."""
    x = mx.random.normal((512, 2048))
    pairs = [(once(lambda: mx.softmax(x, axis=-1)), once(lambda: cpu.kernels().softmax(x))) for _ in range(repeats + 1)]
    stock, native = (statistics.median(side) for side in zip(*pairs[1:], strict=True))
    return {"stock_ms": round(stock, 3), "native_ms": round(native, 3), "speedup": round(stock / native, 1)}


def read_bandwidth(repeats: int) -> dict[str, float]:
    """Read bandwidth, from 512 MiB of floats read once: a vector times the rows of a matrix."""
    w, x = mx.zeros((1 << 17, 1 << 10)), mx.ones((1, 1 << 10))
    mx.eval(w, x)
    taken = statistics.median([once(lambda: x @ w.T) for _ in range(repeats + 1)][1:])
    return {"ms": round(taken, 2), "gigabytes_per_second": round(w.nbytes / taken / 1e6, 1)}


def quantized_product(rows: int, shape: tuple[int, int], bits: int, repeats: int) -> dict[str, float]:
    """x W^T for one row of x and W in `bits` bits, with more matrices than fit into a cache."""
    count = 1 if rows > 1 else max(1, (1 << 27) // (shape[0] * shape[1] * bits // 8))
    dense = mx.random.normal(shape).astype(mx.bfloat16)
    made = [mx.quantize(dense + i, group_size=64, bits=bits) for i in range(count)]
    x = mx.random.normal((rows, shape[1]))
    mx.eval(made, x)
    ours = [quantized.Packed(*packed, 64, bits) for packed in made]
    wide = quantized.Packed(made[0][0], *(a.astype(mx.float32) for a in made[0][1:]), 64, bits)

    def run(form: quantized.Activations) -> list[mx.array]:
        with quantized.using_activations(form):
            return [quantized.quantized_matmul(x, packed) for packed in ours]

    def stock() -> mx.array:
        with using("stock"):
            return quantized.quantized_matmul(x[:16], wide)

    runs: dict[str, Run] = {"stock": stock, "int8": lambda: run("int8"), "float": lambda: run("float")}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, timed in runs.items():
            taken = once(timed)
            if turn:
                times[name].append(taken / (min(rows, 16) if name == "stock" else rows * count))
    size, result = sum(a.nbytes for a in made[0]), {}
    for name, taken in times.items():
        milliseconds = statistics.median(taken)
        result[f"{name}_gigabytes_per_second" if rows == 1 else f"{name}_gflops"] = round(
            (size if rows == 1 else 2 * shape[0] * shape[1]) / milliseconds / 1e6, 2
        )
    return result


def training_step(rows: int, length: int) -> Run:
    """One step of AdamW of a llama of 6 layers, 256 wide, on rows of `length` tokens."""
    model = build(families.spec(CONFIG))
    weights = dict(tree_flatten(model.trainable_parameters()))
    optimizer = AdamW(0.9, 0.95, 1e-8, 0.1)
    state = optimizer.init(weights)
    tokens = mx.random.randint(0, CONFIG["vocab_size"], (rows, length + 1))
    mx.eval(weights, state.mean, state.square, tokens)

    def loss(tokens: mx.array) -> mx.array:
        return cross_entropy.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    gradient = nn.value_and_grad(model, loss)

    def step() -> list[Any]:
        value, tree = gradient(tokens)
        gradients = dict(tree_flatten(tree))
        scale = clip_factor(global_norm(gradients), 1.0)
        new, moved = optimizer.update(weights, gradients, state, 1e-3, scale)
        model.update(tree_unflatten(list(weights.items())))
        return [value, new, moved.mean, moved.square]

    return step


def torch_step(rows: int, length: int) -> Run:
    """The same step in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    tokens = torch.randint(0, CONFIG["vocab_size"], (rows, length))

    def step() -> list[Any]:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return []

    return step


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--only-step", action="store_true")
    arguments = parser.parse_args()
    cpu.available()
    rows, length = 8, 256
    result: dict[str, Any] = {"blas": blas.install().name, "native": cpu.reason() or "yes"}
    if not arguments.only_step:
        result["matmul 512x512x1536"] = matmul()
        result["softmax 1M"] = softmax_1m(arguments.repeats)
        for name, run in (small_ops() | linears() | updates() | draws()).items():
            result[name] = versus(run, arguments.repeats)
        result["read bandwidth"] = read_bandwidth(arguments.repeats)
        for bits in (4, 8):
            for rows, shape in ((1, (4864, 896)), (1, (151_936, 896)), (8, (4864, 896)), (512, (4864, 896))):
                name = f"quantized {bits} bit, {rows} x {shape[1]} x {shape[0]}"
                result[name] = quantized_product(rows, shape, bits, arguments.repeats)
    step = versus(training_step(rows, length), min(arguments.repeats, 3))
    for name in ("stock", "native"):
        step[f"{name}_tokens_per_second"] = round(rows * length / step[f"{name}_ms"] * 1e3)
    if arguments.torch:
        run = torch_step(rows, length)
        taken = statistics.median([once(run) for _ in range(4)][1:])
        step |= {"torch_ms": round(taken, 1), "torch_tokens_per_second": round(rows * length / taken * 1e3)}
    result["training step"] = step
    for name, values in result.items():
        print(f"{name:<40} {values}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
