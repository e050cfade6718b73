"""Test cases: products with packed matrices, experts, and sampling of a token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from macllm.ops.metal import launch
from macllm.ops.metal.quantized_matvec import qmv
from macllm.ops.metal.sampling import sample

from .case import Arrays, Case, normal, widened

BITS, GROUP, EPS = 4, 64, 1e-5
EXPERTS, RANK = 16, 16
FILTERS = sample.Filters(0.8, top_k=20, top_p=0.95)


class MatmulShape(NamedTuple):
    """Shapes of the input (rows, width) and the result (rows, outputs)."""

    rows: int
    width: int
    outputs: int
    timed: bool = False

    def __str__(self) -> str:
        return f"{self.rows} x {self.width} to {self.outputs}"


SHAPES = (
    MatmulShape(1, 64, 1),
    MatmulShape(5, 192, 37),
    MatmulShape(8, 640, 70),
    MatmulShape(1, 2048, 8192, timed=True),
    MatmulShape(1, 4096, 4096, timed=True),
    MatmulShape(4, 2048, 8192, timed=True),
)
OF_EXPERTS = (  # outputs: an expert's hidden size
    MatmulShape(1, 128, 64),
    MatmulShape(3, 192, 128),
    MatmulShape(1, 2048, 768, timed=True),
    MatmulShape(4, 2048, 768, timed=True),
)
TOP = {64: 2, 128: 3, 768: 8}
VOCABULARIES = ((1, 33, False), (3, 5000, False), (1, 4096, True), (1, 151936, True))


def cases(dtype: mx.Dtype) -> Iterator[Case]:
    """Products with their epilogues, experts, and draws."""
    for shape in SHAPES:
        yield _plain(shape, dtype)
        yield _gated(shape, dtype)
        yield _three(shape, dtype)
        yield _adapted(shape, dtype)
    for shape in OF_EXPERTS:
        yield _experts(shape, dtype)
    for batch, vocabulary, timed in VOCABULARIES:
        yield _draw(batch, vocabulary, timed, dtype)


def _product(x: mx.array, w: qmv.Matrix, **around: Any) -> mx.array:
    return qmv.product(x, w, qmv.Epilogue(**around))


def _matrix(inputs: Arrays, name: str) -> qmv.Matrix:
    words, scales, biases = (inputs[f"{name}_{part}"] for part in ("words", "scales", "biases"))
    return qmv.Matrix(words, scales, biases, BITS, GROUP)


def _packed(name: str, *shape: int, dtype: mx.Dtype, seed: int) -> dict[str, mx.array]:
    """A matrix whose products are about as large as their inputs."""
    parts = mx.quantize(shape[-1] ** -0.5 * normal(*shape, dtype=dtype, seed=seed), group_size=GROUP, bits=BITS)
    return {f"{name}_{part}": x for part, x in zip(("words", "scales", "biases"), parts, strict=True)}


def _stock_product(x: mx.array, w: qmv.Matrix) -> mx.array:
    return mx.quantized_matmul(x, w.words, w.scales, w.biases, group_size=w.group_size, bits=w.bits)


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _filled(results: mx.array, x: mx.array) -> mx.array:
    """The results, cut or repeated to the width of x."""
    rows, width = x.shape
    return mx.tile(results, (1, -(-width // results.shape[1])))[:rows, :width]


def _plain(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """A product with bias and residual."""
    rows, width, count, timed = shape

    def make_inputs(seed: int) -> Arrays:
        extras = {
            "bias": normal(count, dtype=dtype, seed=seed + 2),
            "residual": normal(rows, count, dtype=dtype, seed=3),
        }
        packed = _packed("w", count, width, dtype=dtype, seed=seed + 1)
        return {"x": normal(rows, width, dtype=dtype, seed=seed), **packed, **extras}

    def kernel(inputs: Arrays) -> list[mx.array]:
        return [_product(inputs["x"], _matrix(inputs, "w"), bias=inputs["bias"], residual=inputs["residual"])]

    def stock(inputs: Arrays) -> list[mx.array]:
        return [_stock_product(inputs["x"], _matrix(inputs, "w")) + inputs["bias"] + inputs["residual"]]

    return Case(
        "qmv",
        f"{shape}, bias and residual",
        dtype,
        rows,
        make_inputs,
        kernel,
        lambda inputs: stock(widened(inputs)),
        stock,
        lambda inputs, results: {**inputs, "x": _filled(results[0], inputs["x"])},
        timed,
    )


def _gated(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """Norm, two products and SwiGLU."""
    rows, width, count, timed = shape

    def make_inputs(seed: int) -> Arrays:
        arrays = {"x": normal(rows, width, dtype=dtype, seed=seed), "norm": normal(width, dtype=dtype, seed=seed + 1)}
        for i, name in enumerate(("gate", "up")):
            arrays |= _packed(name, count, width, dtype=dtype, seed=seed + 2 + i)
        return arrays

    def kernel(inputs: Arrays) -> list[mx.array]:
        norm, up = qmv.Norm(inputs["norm"], EPS), _matrix(inputs, "up")
        return [_product(inputs["x"], _matrix(inputs, "gate"), norm=norm, up=up, activation="silu")]

    def stock(inputs: Arrays) -> list[mx.array]:
        y = mx.fast.rms_norm(inputs["x"], inputs["norm"], EPS)
        return [_silu(_stock_product(y, _matrix(inputs, "gate"))) * _stock_product(y, _matrix(inputs, "up"))]

    return Case(
        "qmv_gated",
        f"{shape}, norm and SwiGLU",
        dtype,
        rows,
        make_inputs,
        kernel,
        lambda inputs: stock(widened(inputs)),
        stock,
        lambda inputs, results: {**inputs, "x": _filled(results[0], inputs["x"])},
        timed,
    )


def _three(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """Norm, and projections of queries, keys and values; keys and values have a quarter of the outputs."""
    rows, width, count, timed = shape
    counts = {"q": count, "k": -(-count // 4), "v": -(-count // 4)}

    def make_inputs(seed: int) -> Arrays:
        arrays = {"x": normal(rows, width, dtype=dtype, seed=seed), "norm": normal(width, dtype=dtype, seed=seed + 1)}
        for i, (name, own) in enumerate(counts.items()):
            arrays |= _packed(name, own, width, dtype=dtype, seed=seed + 2 + i)
        return arrays

    def kernel(inputs: Arrays) -> list[mx.array]:
        matrices = [_matrix(inputs, name) for name in counts]
        return launch(qmv.three(inputs["x"], matrices, qmv.Norm(inputs["norm"], EPS)))

    def stock(inputs: Arrays) -> list[mx.array]:
        y = mx.fast.rms_norm(inputs["x"], inputs["norm"], EPS)
        return [_stock_product(y, _matrix(inputs, name)) for name in counts]

    return Case(
        "qmv_three",
        f"{shape}, norm",
        dtype,
        rows,
        make_inputs,
        kernel,
        lambda inputs: stock(widened(inputs)),
        stock,
        lambda inputs, results: {**inputs, "x": _filled(results[0], inputs["x"])},
        timed,
    )


def _adapted(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """A product with a LoRA adapter."""
    rows, width, count, timed = shape

    def make_inputs(seed: int) -> Arrays:
        a, b = (
            width**-0.5 * normal(width, RANK, dtype=mx.float32, seed=2),
            normal(RANK, count, dtype=mx.float32, seed=3),
        )
        packed = _packed("w", count, width, dtype=dtype, seed=seed + 1)
        return {"x": normal(rows, width, dtype=dtype, seed=seed), **packed, "a": a.astype(dtype), "b": b.astype(dtype)}

    def kernel(inputs: Arrays) -> list[mx.array]:
        adapter = qmv.Adapter(inputs["a"], inputs["b"].T, 0.5)
        return [_product(inputs["x"], _matrix(inputs, "w"), adapter=adapter)]

    def stock(inputs: Arrays) -> list[mx.array]:
        x = inputs["x"]
        return [_stock_product(x, _matrix(inputs, "w")) + 0.5 * ((x @ inputs["a"]) @ inputs["b"])]

    return Case(
        "lora",
        f"{shape}, rank {RANK}",
        dtype,
        rows,
        make_inputs,
        kernel,
        lambda inputs: stock(widened(inputs)),
        stock,
        lambda inputs, results: {**inputs, "x": _filled(results[0], inputs["x"])},
        timed,
    )


def _experts(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """The weighted sum of each token's experts."""
    tokens, width, hidden, timed = shape
    top = TOP[hidden]

    def make_inputs(seed: int) -> Arrays:
        chosen = mx.argsort(normal(tokens, EXPERTS, dtype=mx.float32, seed=seed + 5), axis=-1)[:, :top]
        arrays = {
            "x": normal(tokens, width, dtype=dtype, seed=seed),
            "chosen": mx.contiguous(chosen.astype(mx.int32)),
            "weights": mx.softmax(normal(tokens, top, dtype=mx.float32, seed=seed + 6), axis=-1),
        }
        for i, name in enumerate(("gate", "up")):
            arrays |= _packed(name, EXPERTS, hidden, width, dtype=dtype, seed=seed + 2 + i)
        return arrays | _packed("down", EXPERTS, width, hidden, dtype=dtype, seed=seed + 4)

    def kernel(inputs: Arrays) -> list[mx.array]:
        gate, up, down = (_matrix(inputs, name) for name in ("gate", "up", "down"))
        h = launch(qmv.gate_up(inputs["x"], gate, up, inputs["chosen"], "silu"))[0]
        return launch(qmv.down_combine(h, down, inputs["chosen"], inputs["weights"]))

    def stock(inputs: Arrays) -> list[mx.array]:
        def each(x: mx.array, name: str) -> mx.array:
            w = _matrix(inputs, name)
            options = {"rhs_indices": inputs["chosen"], "group_size": GROUP, "bits": BITS}
            return mx.gather_qmm(x, w.words, w.scales, w.biases, **options)

        rows = inputs["x"][:, None, None]
        h = _silu(each(rows, "gate")) * each(rows, "up")
        summed = (each(h, "down")[:, :, 0] * inputs["weights"][..., None]).sum(1)
        return [summed.astype(inputs["x"].dtype)]

    return Case(
        "moe",
        f"{shape} and back, {top} of {EXPERTS} experts",
        dtype,
        tokens,
        make_inputs,
        kernel,
        lambda inputs: stock(widened(inputs)),
        stock,
        lambda inputs, results: {**inputs, "x": results[0]},
        timed,
        unread_bytes=_of_others,
    )


def _of_others(inputs: Arrays) -> int:
    """Bytes of the experts that no token chose."""
    visited = int(mx.any(inputs["chosen"].reshape(-1, 1) == mx.arange(EXPERTS), axis=0).sum())
    matrices = sum(array.nbytes for array in inputs.values() if array.shape[0] == EXPERTS)
    return matrices * (EXPERTS - visited) // EXPERTS


def _draw(batch: int, vocabulary: int, timed: bool, dtype: mx.Dtype) -> Case:
    """Draw a token; its log-probability is compared, since equally likely tokens are equally correct."""

    def make_inputs(seed: int) -> Arrays:
        uniform = mx.random.uniform(shape=(batch,), key=mx.random.key(seed + 1))
        return {"logits": 3 * normal(batch, vocabulary, dtype=dtype, seed=seed), "uniform": uniform}

    def kernel(inputs: Arrays) -> list[mx.array]:
        return sample.draw(inputs["logits"], inputs["uniform"], FILTERS)[:2]

    def stock(inputs: Arrays) -> list[mx.array]:
        logits = inputs["logits"].astype(mx.float32)
        kept = min(FILTERS.top_k, vocabulary)
        best = mx.argpartition(-logits, kept - 1, axis=-1)[:, :kept]
        some = mx.take_along_axis(logits, best, axis=-1)
        order = mx.argsort(-some, axis=-1)
        best, some = (mx.take_along_axis(x, order, axis=-1) for x in (best, some))
        weights = mx.softmax(some / FILTERS.temperature, axis=-1)
        weights = mx.where(mx.cumsum(weights, axis=-1) - weights < FILTERS.top_p, weights, 0)
        reached = mx.cumsum(weights, axis=-1) / weights.sum(-1, keepdims=True)
        place = mx.minimum((reached <= inputs["uniform"][:, None]).sum(-1, keepdims=True), kept - 1)
        token, logit = (mx.take_along_axis(x, place, axis=-1)[:, 0] for x in (best, some))
        return [token, logit - mx.logsumexp(logits, axis=-1)]

    def compared(inputs: Arrays, results: list[mx.array]) -> list[mx.array]:
        token, logprob = results
        logits = inputs["logits"].astype(mx.float32)
        own = mx.take_along_axis(logits, token[:, None].astype(mx.int32), axis=-1)[:, 0]
        return [logprob, own - mx.logsumexp(logits, axis=-1)]

    return Case(
        "sample",
        f"{batch} x {vocabulary} logits, top-k {FILTERS.top_k}, top-p {FILTERS.top_p}",
        dtype,
        vocabulary,
        make_inputs,
        kernel,
        lambda inputs: [stock(inputs)[1]] * 2,
        stock,
        lambda inputs, results: {**inputs, "uniform": mx.sigmoid(results[1])},
        timed,
        compared,
    )
