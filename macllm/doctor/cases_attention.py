"""Test cases: attention (decode, prefill, backward)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.attention import attention_reference
from macllm.ops.metal.attention import flash, kv_decode

from .case import Arrays, Case, group_size, normal, widened

BITS = 4
ROOM = 64  # empty slots of a cache


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
        named = [name if value is True else f"{name} {value:g}" for name, value in extras.items() if value]
        return ", ".join([size, *named, *(["padding"] if any(self.padded) else [])])

    @property
    def masked(self) -> str:
        """Suffix of the op's name, if MLX's attention needs a dense mask."""
        return "_masked" if self.window or self.segment or any(self.padded) else ""

    def params(self, inputs: Arrays) -> flash.FlashParams:
        """Parameters of the prefill kernels."""
        return flash.FlashParams(
            self.dim**-0.5,
            True,
            mx.array(self.padded),
            window=self.window,
            softcap=self.softcap,
            sinks=inputs.get("sinks"),
            segments=inputs.get("segments"),
        )

    def decode_params(self, inputs: Arrays) -> kv_decode.DecodeParams:
        """Parameters of the decode kernels."""
        options = {"window": self.window, "softcap": self.softcap, "sinks": inputs.get("sinks")}
        return kv_decode.DecodeParams(self.dim**-0.5, True, mx.array(self.padded), **options)

    def mask(self) -> mx.array:
        """(B or 1, 1, L, S) bool: True for the keys that a query sees."""
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
    """Decode, prefill and backward, over dense and packed keys and values."""
    for shape in FEW:
        yield _few(shape, dtype, packed=False)
        yield _few(shape, dtype, packed=True)
    for shape in MANY:
        yield _many(shape, dtype, packed=False)
        yield _many(shape, dtype, packed=True)
        yield _backward(shape, dtype)


def _make_inputs(shape: AttentionShape, dtype: mx.Dtype, seed: int, *, packed: bool) -> dict[str, mx.array]:
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
        mx.eval(parts)  # so that the view below is of an existing buffer with empty slots
        arrays |= {part: x[:, :, : shape.count] for part, x in parts.items()}
    if shape.sunk:
        arrays["sinks"] = normal(shape.heads, dtype=dtype, seed=seed + 3)
    if shape.segment:
        arrays["segments"] = (mx.arange(shape.count) // shape.segment).astype(mx.int32)[None]
    return arrays


def _parts(inputs: Arrays) -> dict[str, mx.array]:
    names = ("k_words", "k_scales", "k_biases", "v_words", "v_scales", "v_biases")
    return {name: inputs[name] for name in (names if "k_words" in inputs else ("keys", "values"))}


def _dense(inputs: Arrays) -> tuple[mx.array, mx.array]:
    if "keys" in inputs:
        return inputs["keys"], inputs["values"]
    parts = ([inputs[f"{name}_{part}"] for part in ("words", "scales", "biases")] for name in "kv")
    group = group_size(inputs["q"].shape[3])
    keys, values = (mx.dequantize(*each, group_size=group, bits=BITS) for each in parts)
    return keys, values


def _reference(shape: AttentionShape, inputs: Arrays) -> mx.array:
    wide = widened(inputs)
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


def _stock(shape: AttentionShape, inputs: Arrays) -> mx.array:
    q, (keys, values), scale = inputs["q"], _dense(inputs), shape.dim**-0.5
    mask = shape.mask() if shape.masked else "causal"
    sinks = inputs.get("sinks")
    if shape.softcap:
        softcap = shape.softcap
        return attention_reference(q, keys, values, scale=scale, mask=mask, softcap=softcap, sinks=sinks)
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask, sinks=sinks)


def _chain(inputs: Arrays, results: list[mx.array]) -> Arrays:
    return {**inputs, "q": results[0]}


def _few(shape: AttentionShape, dtype: mx.Dtype, *, packed: bool) -> Case:
    bits = {"key_bits": BITS, "value_bits": BITS} if packed else {}

    def kernel(inputs: Arrays) -> list[mx.array]:
        return [kv_decode.run(inputs["q"], _parts(inputs), shape.decode_params(inputs), **bits)]

    return Case(
        "kv_decode_packed" if packed else "kv_decode",
        f"{shape}, {BITS} bit" if packed else str(shape),
        dtype,
        shape.count,
        lambda seed: _make_inputs(shape, dtype, seed, packed=packed),
        kernel,
        lambda inputs: [_reference(shape, inputs)],
        lambda inputs: [_stock(shape, inputs)],
        _chain,
        shape.timed,
    )


def _many(shape: AttentionShape, dtype: mx.Dtype, *, packed: bool) -> Case:
    bits = {"key_bits": BITS, "value_bits": BITS} if packed else {}

    def kernel(inputs: Arrays) -> list[mx.array]:
        return flash.run(inputs["q"], _parts(inputs), shape.params(inputs), **bits)[:1]

    return Case(
        f"flash_prefill{'_packed' if packed else ''}{shape.masked}",
        f"{shape}, {BITS} bit" if packed else str(shape),
        dtype,
        shape.length,
        lambda seed: _make_inputs(shape, dtype, seed, packed=packed),
        kernel,
        lambda inputs: [_reference(shape, inputs)],
        lambda inputs: [_stock(shape, inputs)],
        _chain,
        shape.timed,
    )


def _backward(shape: AttentionShape, dtype: mx.Dtype) -> Case:
    """Attention and the gradients of queries, keys and values."""

    def make_inputs(seed: int) -> Arrays:
        arrays = _make_inputs(shape, dtype, seed, packed=False)
        return {**arrays, "dout": normal(*arrays["q"].shape, dtype=dtype, seed=seed + 4)}

    def kernel(inputs: Arrays) -> list[mx.array]:
        params = shape.params(inputs)
        out, lse = flash.run(inputs["q"], _parts(inputs), params)
        arrays = {name: inputs[name] for name in ("q", "keys", "values", "dout")}
        return [out, *flash.run_vjp({**arrays, "out": out, "lse": lse}, params)]

    def by_mlx(inputs: Arrays, exactly: bool) -> list[mx.array]:
        def run(q: mx.array, keys: mx.array, values: mx.array) -> mx.array:
            arrays = {**inputs, "q": q, "keys": keys, "values": values}
            return _reference(shape, arrays) if exactly else _stock(shape, arrays)

        outs, gradients = mx.vjp(run, [inputs["q"], inputs["keys"], inputs["values"]], [inputs["dout"]])
        return [*outs, *gradients]

    return Case(
        f"flash_backward{shape.masked}",
        str(shape),
        dtype,
        shape.length,
        make_inputs,
        kernel,
        lambda inputs: by_mlx(widened(inputs), exactly=True),
        lambda inputs: by_mlx(inputs, exactly=False),
        _chain,
        shape.timed,
    )
