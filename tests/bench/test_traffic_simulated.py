"""Counted bytes of a dispatch against the bytes that it touches in the simulator."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from macllm.ops.head_params import HeadParams, Packing
from macllm.ops.metal import KernelCall, launch
from macllm.ops.metal.attention import kv_decode
from macllm.ops.metal.qk_norm_rope import qkv_post
from macllm.ops.metal.quantized_matvec import qmv
from macllm.ops.metal.sampling import sample
from macllm.ops.weights import RMSNormWeight
from tests.simulator.run import RunOptions, run

sys.path.insert(0, str(Path(__file__).parent))
from dispatches import Dispatch, dispatches
from primitives import trace

LINE = 128
APART = 0.05


def drawn(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(0)).astype(dtype)


def packed(*shape: int) -> list[mx.array]:
    return list(mx.quantize(drawn(*shape), group_size=64, bits=4))


def matrices(parts: tuple[mx.array, ...]) -> list[qmv.Matrix]:
    return [qmv.Matrix(*parts[n : n + 3], 4, 64) for n in range(0, len(parts), 3)]


def product(x: mx.array, *parts: mx.array) -> KernelCall:
    (w,) = matrices(parts)
    return qmv.fused(x, w, qmv.Epilogue())


def gated(x: mx.array, norm: mx.array, *parts: mx.array) -> KernelCall:
    gate, up = matrices(parts)
    return qmv.fused(x, gate, qmv.Epilogue(qmv.Norm(norm, 1e-5), up, "silu"))


def joined(x: mx.array, residual: mx.array, *parts: mx.array) -> KernelCall:
    (w,) = matrices(parts)
    return qmv.fused(x, w, qmv.Epilogue(residual=residual))


def opened(x: mx.array, chosen: mx.array, *parts: mx.array) -> KernelCall:
    gate, up = matrices(parts)
    return qmv.gate_up(x, gate, up, chosen, "silu")


def combined(h: mx.array, chosen: mx.array, weights: mx.array, *parts: mx.array) -> KernelCall:
    (w,) = matrices(parts)
    return qmv.down_combine(h, w, chosen, weights)


def head_params(q_norm: mx.array, k_norm: mx.array, wavelengths: mx.array) -> HeadParams:
    return HeadParams(128, RMSNormWeight(q_norm, 1e-5), RMSNormWeight(k_norm, 1e-5), wavelengths)


def heads(q: mx.array, k: mx.array, v: mx.array, *tables: mx.array) -> KernelCall:
    return qkv_post.forward(q, k, v, head_params(*tables), mx.array([700]))


def heads_packed(q: mx.array, k: mx.array, v: mx.array, *tables: mx.array) -> KernelCall:
    return qkv_post.packed(q, k, v, head_params(*tables), mx.array([700]), Packing(4, 64))


RULES = kv_decode.DecodeParams(0.1, True, mx.array([0]))


def attended(q: mx.array, k: mx.array, v: mx.array) -> KernelCall:
    return kv_decode.decode(q, {"keys": k[:, :, :700], "values": v[:, :, :700]}, RULES)


def attended_packed(q: mx.array, *parts: mx.array) -> KernelCall:
    names = [f"{side}_{part}" for side in "kv" for part in ("words", "scales", "biases")]
    views = {name: part[:, :, :700] for name, part in zip(names, parts, strict=True)}
    return kv_decode.decode(q, views, RULES, key_bits=4, value_bits=4)


def combined_chunks(q: mx.array, sums: mx.array, stats: mx.array) -> KernelCall:
    return kv_decode.combine(q, sums, stats, RULES)


def blocks(logits: mx.array) -> KernelCall:
    return sample.blocks(logits, sample.Filters(1.0))


ROW, KEYS, CHOSEN = (1, 512), (1, 2, 1024, 128), mx.array([[3, 1]], dtype=mx.int32)
PROJECTED = [drawn(1, 8, n * 128) for n in (8, 2, 2)] + [drawn(128), drawn(128), drawn(64, dtype=mx.float32)]
FLOATS = {"dtype": mx.float32}
SUMS = [drawn(1, 8, 1, 64, n, **FLOATS) for n in (128, 2)]
CASES: dict[str, tuple[Callable[..., KernelCall], list[mx.array]]] = {
    "product": (product, [drawn(*ROW), *packed(256, 512)]),
    "norm and gate": (gated, [drawn(*ROW), drawn(512), *packed(128, 512), *packed(128, 512)]),
    "residual": (joined, [drawn(*ROW), drawn(1, 256), *packed(256, 512)]),
    "experts' gates": (opened, [drawn(*ROW), CHOSEN, *packed(8, 64, 512), *packed(8, 64, 512)]),
    "experts' sum": (combined, [drawn(1, 2, 512), CHOSEN, drawn(1, 2, **FLOATS), *packed(8, 128, 512)]),
    "heads": (heads, PROJECTED),
    "heads, packed": (heads_packed, PROJECTED),
    "attention": (attended, [drawn(1, 8, 1, 128), drawn(*KEYS), drawn(*KEYS)]),
    "attention, packed": (attended_packed, [drawn(1, 8, 1, 128), *packed(*KEYS), *packed(*KEYS)]),
    "chunks": (
        combined_chunks,
        [drawn(1, 8, 1, 128), *SUMS],
    ),
    "logits": (blocks, [drawn(1, 8192, **FLOATS)]),
}


def counted(make: Callable[..., KernelCall], arrays: list[mx.array]) -> Dispatch:
    (one,) = dispatches(trace(lambda *given: launch(make(*given)), *arrays))
    return one


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_touches_the_bytes_counted_for_it(case: str) -> None:
    make, arrays = CASES[case]
    mx.eval(arrays)
    done = run(make(*arrays), RunOptions())
    assert done.faults == []
    # A scalar input is a line in the simulator, and a few bytes in the count.
    touched = sum(buffer.lines * LINE for buffer in done.traffic.values() if buffer.lines > 1)
    said = counted(make, arrays)
    assert said.nbytes == pytest.approx(touched, rel=APART)
