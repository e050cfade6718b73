"""Mutants of macllm's kernels: `python -m tests.simulator.mutants.kernel_mutants` runs them.

Prints a table of the faults that kill each mutant, or "other numbers" if its results differ from the correct kernel's.
Ends with 1 if a mutant survives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from macllm.ops import metal
from macllm.ops.head_params import HeadParams
from macllm.ops.linear_attention import State, elu_features
from macllm.ops.metal import KernelSource, launch, linear_attention
from macllm.ops.metal.attention import flash, kv_decode
from macllm.ops.metal.qk_norm_rope import qkv_post
from macllm.ops.metal.quantized_matvec import qmv
from macllm.ops.metal.sampling import sample
from macllm.ops.weights import RMSNormWeight

from ..intercept import Log, simulated

Case = Callable[[], list[mx.array]]
TOLERANCE = 1e-4  # relative to the largest number: more than any rounding


def random(*shape: int, seed: int = 0) -> mx.array:
    """Numbers of a normal distribution."""
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _cache(count: int, dim: int) -> dict[str, mx.array]:
    return {name: random(2, 2, count + 3, dim, seed=s)[:, :, :count] for s, name in enumerate(("keys", "values"), 1)}


def _prefill() -> list[mx.array]:
    rules = flash.FlashParams(0.3, True, mx.array([0, 4]), window=20)
    return flash.run(random(2, 4, 45, 16), _cache(60, 16), rules)


def _prefill_backward() -> list[mx.array]:
    q, cache, rules = (
        random(1, 4, 37, 16),
        {n: x[:1] for n, x in _cache(37, 16).items()},
        flash.FlashParams(0.3, True, mx.array([0])),
    )
    arrays = {"q": q, **cache, "out": 0.1 * q, "lse": mx.ones(q.shape[:3]) * 3, "dout": random(*q.shape, seed=3)}
    return flash.run_vjp(arrays, rules)


def _decode() -> list[mx.array]:
    rules = kv_decode.DecodeParams(0.3, True, mx.array([0, 30]), window=300)
    return [kv_decode.run(random(2, 6, 3, 16), _cache(561, 16), rules)]


def _decode_token() -> list[mx.array]:
    return [kv_decode.run(random(2, 4, 1, 16), _cache(60, 16), kv_decode.DecodeParams(0.3, True, mx.array([0])))]


def _packed() -> list[mx.array]:
    parts = {}
    for name, rows in zip("kv", _cache(41, 64).values(), strict=True):
        packed = mx.quantize(rows, group_size=32, bits=4)
        parts |= dict(zip((f"{name}_words", f"{name}_scales", f"{name}_biases"), packed, strict=True))
    rules = kv_decode.DecodeParams(0.2, True, mx.array([0]))
    return [kv_decode.run(random(2, 4, 2, 64), parts, rules, key_bits=4, value_bits=4)]


def _heads() -> list[mx.array]:
    norms = (RMSNormWeight(random(40, seed=seed), 1e-5) for seed in (7, 8))
    params = HeadParams(40, *norms, mx.arange(1, 17, dtype=mx.float32))
    q, k, v = (random(2, 3, n * 40, seed=n) for n in (4, 2, 2))
    grads = (random(2, n, 3, 40, seed=n) for n in (4, 2, 2))
    arrays = {"q": q, "k": k, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
    forward = launch(qkv_post.forward(q, k, v, params, mx.array([5])))
    return [*forward, *launch(qkv_post.backward(arrays, params, mx.array([5])))]


def _matrix(*shape: int, seed: int) -> qmv.Matrix:
    return qmv.Matrix(*mx.quantize(random(*shape, seed=seed), group_size=32, bits=4), 4, 32)


def _product() -> list[mx.array]:
    epilogue = qmv.Epilogue(qmv.Norm(random(96, seed=3), 1e-5), _matrix(21, 96, seed=2), "silu")
    return [qmv.product(random(3, 96), _matrix(21, 96, seed=1), epilogue)]


def _three() -> list[mx.array]:
    matrices = [_matrix(n, 96, seed=n) for n in (21, 9, 12)]
    return launch(qmv.three(random(5, 96), matrices, qmv.Norm(random(96, seed=3), 1e-5)))


def _experts() -> list[mx.array]:
    chosen, weights = mx.array([[1, 4, 0], [3, 1, 2]]), mx.softmax(random(2, 3, seed=4))
    h = launch(qmv.gate_up(random(2, 96), _matrix(5, 64, 96, seed=1), _matrix(5, 64, 96, seed=2), chosen, "silu"))[0]
    return [h, *launch(qmv.down_combine(h, _matrix(5, 21, 64, seed=3), chosen, weights))]


def _draw() -> list[mx.array]:
    logits, uniform = 3 * random(4, 5000), mx.array([0.0, 0.3, 0.6, 0.99])
    return sample.draw(logits, uniform, sample.Filters(0.9, 40, 0.9, 0.01))[:2]


def _draw_beyond() -> list[mx.array]:
    """A draw with more ties than candidates, among which the mass ends."""
    logits = mx.broadcast_to(-3.0 * (mx.arange(2560) >= 1200), (2, 2560))
    return sample.draw(logits, mx.array([0.4, 0.999]), sample.Filters(0.9, 0, 0.97))


def _linear() -> list[mx.array]:
    q, k = (elu_features(random(1, 2, 130, 16, seed=s)) for s in (0, 1))
    state = State(mx.ones((1, 2, 16, 24)), mx.ones((1, 2, 16)))
    return list(linear_attention.run(q, k, random(1, 2, 130, 24, seed=2), *state, causal=True))


class Mutant(NamedTuple):
    """A mutant of a kernel: `old` replaced by `new` once, and the case that kills it."""

    kernel: str
    name: str
    old: str
    new: str
    case: Case


_BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
MUTANTS = [
    Mutant(
        "flash_prefill",
        "no barrier before the tile is overwritten",
        f"    {_BARRIER}    read_tile<F, F::N>(values",
        "    read_tile<F, F::N>(values",
        _prefill,
    ),
    Mutant(
        "flash_prefill",
        "the last tile is full",
        "read_tile<F, F::N>(keys, key, end,",
        "read_tile<F, F::N>(keys, key, key + F::N,",
        _prefill,
    ),
    Mutant("flash_prefill", "a window larger by one", "at - mask.window + 1", "at - mask.window", _prefill),
    Mutant(
        "flash_prefill",
        "no rescaling for a larger score",
        "    scale_rows<F>(block_factors, elements, sums);\n    add_tile",
        "    add_tile",
        _prefill,
    ),
    Mutant(
        "flash_prefill",
        "hard-coded matrix elements of lanes",
        "const Elements own = elements_in(scratch);",
        "Elements own = elements_in(scratch);"
        "for (int e = 0; e < 2; e++) own.column[e] = (index % 2) * 2 + index % 16 / 8 * 4 + e;",
        _prefill,
    ),
    Mutant(
        "flash_prefill",
        "a matrix product in half of the lanes",
        "multiply_tile<F>(block, tile,",
        "if (lane < 16) multiply_tile<F>(block, tile,",
        _prefill,
    ),
    Mutant(
        "flash_backward_q", "wrong sign in softmax's gradient", "(along - delta)", "(along + delta)", _prefill_backward
    ),
    Mutant(
        "flash_backward_kv", "all heads use the first head's deltas", "delta += mask.length;", "", _prefill_backward
    ),
    Mutant(
        "flash_backward_kv",
        "a barrier for other memory",
        f"    {_BARRIER}      add_tile<F>(products, tile",
        "    threadgroup_barrier(mem_flags::mem_device);\n      add_tile<F>(products, tile",
        _prefill_backward,
    ),
    Mutant("kv_decode", "a window larger by one", "at - key < mask.window", "at - key <= mask.window", _decode),
    Mutant("kv_decode", "the last chunk is full", "min(count, begin + CHUNK)", "begin + CHUNK", _decode),
    Mutant(
        "kv_decode",
        "the view's stride is not read",
        "keys_strides[1], keys_strides",
        "long(count) * D, keys_strides",
        _decode,
    ),
    Mutant(
        "kv_decode",
        "lanes without a key skip the sum",
        "for (int by = 1; by < PARTS; by *= 2) score +=",
        "for (int by = 1; key < end && by < PARTS; by *= 2) score +=",
        _decode,
    ),
    Mutant(
        "kv_decode",
        "no barrier before simdgroups' sums are read",
        f"own[3 + i] = x[r].o[i];\n    {_BARRIER}",
        "own[3 + i] = x[r].o[i];\n",
        _decode_token,
    ),
    Mutant("kv_decode", "rows after the last are written", "|| row + r >= rows) continue", ") continue", _decode),
    Mutant("kv_combine", "chunks are not rescaled", "fast::exp2(own[2 * c] - largest) * sums", "sums", _decode),
    Mutant(
        "kv_decode_packed",
        "another group's bias",
        "rows.bias_step + group]);",
        "rows.bias_step]);",
        _packed,
    ),
    Mutant("qkv_post", "rotation in the wrong direction", "a * c - b * s", "a * c + b * s", _heads),
    Mutant("qkv_post_vjp", "the norm's gradient lacks a term", "g.rest[i] - along * x.rest[i]", "g.rest[i]", _heads),
    Mutant(
        "qkv_post_vjp",
        "wrong direction of the inverse rotation",
        "rotate_head(wavelengths, -position",
        "rotate_head(wavelengths, position",
        _heads,
    ),
    Mutant("qmv", "a row past the end", "const long row = min(n + r, N - 1)", "const long row = n + r", _product),
    Mutant(
        "qmv",
        "an incomplete mean of squares",
        "for (int k = lane; k < K; k += 32) squares",
        "for (int k = lane; k < K - 32; k += 32) squares",
        _product,
    ),
    Mutant(
        "qmv",
        "no activation",
        "activated<ACTIVATION>(simd_sum(sums[r][m]))",
        "simd_sum(sums[r][m])",
        _product,
    ),
    Mutant("qmv_three", "values start at the keys' rows", "(own - k_end) * ROWS", "(own - q_end) * ROWS", _three),
    Mutant("qmv_three", "rows after the last are written", "first + m >= rows || n + r", "n + r", _three),
    Mutant(
        "moe_down_combine", "experts are not weighted", "row, row, 0.0f, weight,", "row, row, 0.0f, 1.0f,", _experts
    ),
    Mutant(
        "moe_gate_up", "the slot index instead of the token index", "long(slot / TOP) * K", "long(slot) * K", _experts
    ),
    Mutant(
        "sample_draw", "sorting without a barrier", f"    {_BARRIER}      for (int pair", "      for (int pair", _draw
    ),
    Mutant("sample_draw", "the likeliest token is removed", "i == 0 || (weights", "(i != 0) && (weights", _draw),
    Mutant("sample_draw", "all ties of the last token are kept", "seen < from.equals", "seen >= 0.0f", _draw_beyond),
    Mutant(
        "sample_draw",
        "ties are not counted across threads",
        "float seen = equals_before",
        "float seen = 0.0f",
        _draw_beyond,
    ),
    Mutant(
        "sample_blocks",
        "one simdgroup's candidates are lost",
        "for (int s = 1; s < 8; s++) top",
        "for (int s = 2; s < 8; s++) top",
        _draw,
    ),
    Mutant("linear_attention", "a row sees the next row", "other <= row)", "other <= row + 1)", _linear),
    Mutant(
        "linear_states",
        "the initial state is ignored",
        "simdgroup_load(sums[i], first_sums + corner + 8 * i, D)",
        "sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f)",
        _linear,
    ),
]


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Replace the kernel by its mutant in this block."""
    original = metal.kernel_source

    def kernel_source(kernel: str) -> KernelSource:
        whole = original(kernel)
        if kernel != mutant.kernel:
            return whole
        assert (whole.header + whole.source).count(mutant.old) >= 1, f"{mutant.kernel} has no {mutant.old!r}"
        header, source = (one.replace(mutant.old, mutant.new, 1) for one in (whole.header, whole.source))
        return replace(whole, header=header, source=source if header == whole.header else whole.source)

    with patch.object(metal, "kernel_source", kernel_source):
        yield


def work(case: Case) -> tuple[list[np.ndarray], Log]:
    """The outputs of a case, and the simulator's log."""
    with simulated() as log:
        arrays = case()
    return [np.array(one).astype(np.float64) for one in arrays], log


def killed_by(mutant: Mutant, correct: list[np.ndarray]) -> list[str]:
    """The kinds of faults, and "other numbers" if outputs differ from the correct kernel's."""
    with mutated(mutant):
        got, log = work(mutant.case)
    kinds = {fault.kind for _, result in log.dispatches for fault in result.faults}
    same = all(
        a.shape == b.shape and np.allclose(a, b, rtol=0, atol=TOLERANCE * max(1.0, np.abs(b[np.isfinite(b)]).max()))
        for a, b in zip(got, correct, strict=True)
    )
    return sorted(kinds - {"front"}) + ([] if same else ["other numbers"])


def main() -> int:
    """Run every mutant, and print a table of the checks that kill it."""
    survivors, correct = 0, {}
    print("| Kernel | Mutant | Killed by |")
    print("|---|---|---|")
    for mutant in MUTANTS:
        if mutant.case not in correct:
            correct[mutant.case], _ = work(mutant.case)
        found = killed_by(mutant, correct[mutant.case])
        survivors += not found
        print(f"| `{mutant.kernel}` | {mutant.name} | {', '.join(found) or '**nothing**'} |", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
