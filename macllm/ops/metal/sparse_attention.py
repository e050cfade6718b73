"""How block-sparse attention and its gradients are dispatched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from . import DTYPES, LANES, Call, Input, launch

if TYPE_CHECKING:
    from macllm.ops.sparse_attention import Lists

MOST_DIMS = 128


class Rules(NamedTuple):
    """What sees what, in blocks of `block` rows.

    `keys` lists the blocks that a block of queries sees, `queries` those that see a block of keys.
    `lengths` (B,) or (1,) int32: what comes after is padding.
    """

    block: int
    keys: Lists
    queries: Lists
    lengths: mx.array
    scale: float
    causal: bool


def serves(q: mx.array, k: mx.array, v: mx.array) -> bool:
    """Whether there are kernels for these."""
    dim = q.shape[3]
    return q.dtype == k.dtype == v.dtype and q.dtype in DTYPES and dim == v.shape[3] <= MOST_DIMS and dim % 8 == 0


def run(q: mx.array, k: mx.array, v: mx.array, rules: Rules) -> tuple[mx.array, mx.array]:
    """The result (B, H, L, D), and the logarithm of the sum of exponentials (B, H, L) float32."""
    length = q.shape[2]
    out, lse = launch(forward(whole({"q": q, "k": k, "v": v}, rules.block), rules))
    return out[:, :, :length], lse[:, :, :length]


def gradients(arrays: Mapping[str, mx.array], lse_slopes: mx.array, rules: Rules) -> list[mx.array]:
    """Those of q, k and v; `arrays` are these, out, lse, and out's gradient as slopes."""
    length = arrays["q"].shape[2]
    slopes, out = (arrays[name].astype(mx.float32) for name in ("slopes", "out"))
    given = {name: arrays[name] for name in ("q", "k", "v", "slopes", "lse")}
    padded = whole(given | {"delta": (slopes * out).sum(-1) - lse_slopes}, rules.block)
    both = [*launch(grad_queries(padded, rules)), *launch(grad_keys(padded, rules))]
    return [one[:, :, :length] for one in both]


def forward(arrays: Mapping[str, mx.array], rules: Rules) -> Call:
    """(B, H, L, D) and (B, H, L) float32, of q (B, H, L, D), k and v (B, K, L, D), whole blocks in one piece."""
    q = arrays["q"]
    outputs = {"out": (q.shape, q.dtype), "lse": (q.shape[:3], mx.float32)}
    return _call("sparse_attention", arrays, outputs, rules, rules.keys)


def grad_queries(arrays: Mapping[str, mx.array], rules: Rules) -> Call:
    """That of q; `arrays` are q, k, v, slopes, lse and delta, whole blocks in one piece."""
    q = arrays["q"]
    return _call("sparse_attention_dq", arrays, {"dq": (q.shape, q.dtype)}, rules, rules.keys)


def grad_keys(arrays: Mapping[str, mx.array], rules: Rules) -> Call:
    """Those of k and v; `arrays` as for q's."""
    k = arrays["k"]
    outputs = {"dk": (k.shape, k.dtype), "dv": (k.shape, k.dtype)}
    return _call("sparse_attention_dkv", arrays, outputs, rules, rules.queries, of_keys=True)


def whole(arrays: Mapping[str, mx.array], block: int) -> dict[str, mx.array]:
    """Arrays (B, H, L, ...) in one piece, with zeros up to whole blocks."""
    padded = {}
    for name, array in arrays.items():
        more = [(0, 0), (0, 0), (0, -array.shape[2] % block), *[(0, 0)] * (array.ndim - 3)]
        padded[name] = mx.contiguous(mx.pad(array, more) if array.shape[2] % block else array)
    return padded


def _call(
    kernel: str,
    arrays: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]],
    rules: Rules,
    lists: Lists,
    *,
    of_keys: bool = False,
) -> Call:
    batch, heads, length, dim = arrays["k" if of_keys else "q"].shape
    inputs: dict[str, Input] = {**arrays, "starts": lists.starts, "others": lists.others}
    simdgroups = rules.block // 8 * (2 if of_keys else 1)
    return Call(
        kernel,
        inputs | {"lengths": rules.lengths, "scale": rules.scale},
        outputs,
        (LANES * heads, simdgroups * batch, length // rules.block),
        (LANES, simdgroups, 1),
        {"D": dim, "BLOCK": rules.block, "CAUSAL": rules.causal, "LENGTHS": int(rules.lengths.size > 1)},
    )
