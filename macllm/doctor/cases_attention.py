"""Cases of attention: few queries over a cache, many, and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.attention import attention_reference
from macllm.ops.metal.attention import flash, kv_decode

from .case import Arrays, Case, group_size, normal, widened

BITS = 4
ROOM = 64  # slots that a cache has beside those that are filled


@dataclass(frozen=True)
class AttentionShape:
    """Shapes of queries and keys, and their mask: window, left padding, documents of `segment` keys."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    count: int
    dim: int = 128
    window: int = 0
    padded: tuple[int, ...] = (0,)
    segment: int = 0
    softcap: float = 0.0
    sunk: bool = False
    timed: bool = False

    def __str__(self) -> str:
        size = f"B {self.batch} H {self.heads}/{self.kv_heads} L {self.length} S {self.count} D {self.dim}"
        extras = {"window": self.window, "segments": self.segment, "softcap": self.softcap, "sinks": self.sunk}
        told = [name if value is True else f"{name} {value:g}" for name, value in extras.items() if value]
        return ", ".join([size, *told, *(["padding"] if any(self.padded) else [])])

    @property
    def masked(self) -> str:
        """End of the op's name: MLX needs a mask where more than causality is to be said."""
        return "_masked" if self.window or self.segment or any(self.padded) else ""

    def rules(self, given: Arrays) -> flash.FlashParams:
        """Rules for the prefill kernels."""
        return flash.FlashParams(
            self.dim**-0.5,
            True,
            mx.array(self.padded),
            window=self.window,
            softcap=self.softcap,
            sinks=given.get("sinks"),
            segments=given.get("segments"),
        )

    def decode_rules(self, given: Arrays) -> kv_decode.DecodeParams:
        """Rules for the kernels of few queries."""
        options = {"window": self.window, "softcap": self.softcap, "sinks": given.get("sinks")}
        return kv_decode.DecodeParams(self.dim**-0.5, True, mx.array(self.padded), **options)

    def mask(self) -> mx.array:
        """(B or 1, 1, L, S) bool: whether a query sees a key."""
        at, key = mx.arange(self.count - self.length, self.count)[:, None], mx.arange(self.count)
        sees = (key <= at) & (key >= mx.array(self.padded).reshape(-1, 1, 1, 1))
        if self.window:
            sees = sees & (at - key < self.window)
        return sees & (at // self.segment == key // self.segment) if self.segment else sees


FEW = (
    AttentionShape(1, 1, 1, 1, 1, 64),
    AttentionShape(2, 6, 2, 3, 301, 96, window=200, padded=(0, 5)),
    AttentionShape(1, 4, 1, 16, 600, 64, softcap=20.0, sunk=True),
    AttentionShape(1, 32, 8, 1, 16, timed=True),
    AttentionShape(1, 32, 8, 1, 512, timed=True),
    AttentionShape(1, 32, 8, 1, 8192, timed=True),
)
MANY = (
    AttentionShape(1, 1, 1, 1, 1, 64),
    AttentionShape(2, 4, 2, 37, 50, 96, softcap=20.0),
    AttentionShape(2, 4, 2, 37, 50, 96, window=20, padded=(0, 5)),
    AttentionShape(1, 2, 1, 70, 70, 64, segment=32, softcap=20.0),
    AttentionShape(1, 16, 4, 512, 512, timed=True),
    AttentionShape(1, 16, 4, 2048, 2048, timed=True),
    AttentionShape(1, 16, 4, 512, 512, window=256, timed=True),
    AttentionShape(1, 16, 4, 2048, 2048, window=512, timed=True),
)


def cases(dtype: mx.Dtype) -> Iterator[Case]:
    """Decoding, prompts and gradients, over keys and values as they are and packed."""
    for shape in FEW:
        yield _few(shape, dtype, packed=False)
        yield _few(shape, dtype, packed=True)
    for shape in MANY:
        yield _many(shape, dtype, packed=False)
        yield _many(shape, dtype, packed=True)
        yield _backward(shape, dtype)


def _given(shape: AttentionShape, dtype: mx.Dtype, seed: int, *, packed: bool) -> dict[str, mx.array]:
    arrays = {"q": normal(shape.batch, shape.heads, shape.length, shape.dim, dtype=dtype, seed=seed)}
    room = shape.batch, shape.kv_heads, shape.count + ROOM, shape.dim
    for i, name in enumerate(("keys", "values")):
        rows = normal(*room, dtype=dtype, seed=seed + 1 + i)
        parts = {name: rows}
        if packed:
            named = zip(
                ("words", "scales", "biases"),
                mx.quantize(rows, group_size=group_size(shape.dim), bits=BITS),
                strict=True,
            )
            parts = {f"{name[0]}_{part}": x for part, x in named}
        mx.eval(parts)  # or a view of what is not there yet would be made as large as it is
        arrays |= {part: x[:, :, : shape.count] for part, x in parts.items()}
    if shape.sunk:
        arrays["sinks"] = normal(shape.heads, dtype=dtype, seed=seed + 3)
    if shape.segment:
        arrays["segments"] = (mx.arange(shape.count) // shape.segment).astype(mx.int32)[None]
    return arrays


def _parts(given: Arrays) -> dict[str, mx.array]:
    names = ("k_words", "k_scales", "k_biases", "v_words", "v_scales", "v_biases")
    return {name: given[name] for name in (names if "k_words" in given else ("keys", "values"))}


def _dense(given: Arrays) -> tuple[mx.array, mx.array]:
    if "keys" in given:
        return given["keys"], given["values"]
    parts = ([given[f"{name}_{part}"] for part in ("words", "scales", "biases")] for name in "kv")
    group = group_size(given["q"].shape[3])
    keys, values = (mx.dequantize(*each, group_size=group, bits=BITS) for each in parts)
    return keys, values


def _right(shape: AttentionShape, given: Arrays) -> mx.array:
    wide = widened(given)
    q, (keys, values) = wide["q"], _dense(wide)
    return attention_reference(
        q,
        keys,
        values,
        scale=shape.dim**-0.5,
        mask=shape.mask(),
        softcap=shape.softcap or None,
        sinks=wide.get("sinks"),
    )


def _stock(shape: AttentionShape, given: Arrays) -> mx.array:
    q, (keys, values), scale = given["q"], _dense(given), shape.dim**-0.5
    mask = shape.mask() if shape.masked else "causal"
    sinks = given.get("sinks")
    if shape.softcap:
        softcap = shape.softcap
        return attention_reference(q, keys, values, scale=scale, mask=mask, softcap=softcap, sinks=sinks)
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask, sinks=sinks)


def _then(given: Arrays, results: list[mx.array]) -> Arrays:
    return {**given, "q": results[0]}


def _few(shape: AttentionShape, dtype: mx.Dtype, *, packed: bool) -> Case:
    bits = {"key_bits": BITS, "value_bits": BITS} if packed else {}

    def ours(given: Arrays) -> list[mx.array]:
        return [kv_decode.run(given["q"], _parts(given), shape.decode_rules(given), **bits)]

    return Case(
        "kv_decode_packed" if packed else "kv_decode",
        f"{shape}, {BITS} bit" if packed else str(shape),
        dtype,
        shape.count,
        lambda seed: _given(shape, dtype, seed, packed=packed),
        ours,
        lambda given: [_right(shape, given)],
        lambda given: [_stock(shape, given)],
        _then,
        shape.timed,
    )


def _many(shape: AttentionShape, dtype: mx.Dtype, *, packed: bool) -> Case:
    bits = {"key_bits": BITS, "value_bits": BITS} if packed else {}

    def ours(given: Arrays) -> list[mx.array]:
        return flash.run(given["q"], _parts(given), shape.rules(given), **bits)[:1]

    return Case(
        f"flash_prefill{'_packed' if packed else ''}{shape.masked}",
        f"{shape}, {BITS} bit" if packed else str(shape),
        dtype,
        shape.length,
        lambda seed: _given(shape, dtype, seed, packed=packed),
        ours,
        lambda given: [_right(shape, given)],
        lambda given: [_stock(shape, given)],
        _then,
        shape.timed,
    )


def _backward(shape: AttentionShape, dtype: mx.Dtype) -> Case:
    """Attention and the gradients of queries, keys and values."""

    def given(seed: int) -> Arrays:
        arrays = _given(shape, dtype, seed, packed=False)
        return {**arrays, "dout": normal(*arrays["q"].shape, dtype=dtype, seed=seed + 4)}

    def ours(given: Arrays) -> list[mx.array]:
        rules = shape.rules(given)
        out, lse = flash.run(given["q"], _parts(given), rules)
        arrays = {name: given[name] for name in ("q", "keys", "values", "dout")}
        return [out, *flash.run_vjp({**arrays, "out": out, "lse": lse}, rules)]

    def by_mlx(given: Arrays, exactly: bool) -> list[mx.array]:
        def run(q: mx.array, keys: mx.array, values: mx.array) -> mx.array:
            arrays = {**given, "q": q, "keys": keys, "values": values}
            return _right(shape, arrays) if exactly else _stock(shape, arrays)

        outs, gradients = mx.vjp(run, [given["q"], given["keys"], given["values"]], [given["dout"]])
        return [*outs, *gradients]

    return Case(
        f"flash_backward{shape.masked}",
        str(shape),
        dtype,
        shape.length,
        given,
        ours,
        lambda given: by_mlx(widened(given), exactly=True),
        lambda given: by_mlx(given, exactly=False),
        _then,
        shape.timed,
    )
