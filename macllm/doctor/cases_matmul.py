"""Cases of products with packed matrices, of experts and of the draw of a token."""

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
    """Of x (rows, width) and what it becomes (rows, outputs)."""

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
OF_EXPERTS = (  # outputs are an expert's hidden numbers
    MatmulShape(1, 128, 64),
    MatmulShape(3, 192, 128),
    MatmulShape(1, 2048, 768, timed=True),
    MatmulShape(4, 2048, 768, timed=True),
)
TOP = {64: 2, 128: 3, 768: 8}
VOCABULARIES = ((1, 33, False), (3, 5000, False), (1, 4096, True), (1, 151936, True))


def cases(dtype: mx.Dtype) -> Iterator[Case]:
    """Products with what comes around them, experts, and draws."""
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


def _matrix(given: Arrays, name: str) -> qmv.Matrix:
    words, scales, biases = (given[f"{name}_{part}"] for part in ("words", "scales", "biases"))
    return qmv.Matrix(words, scales, biases, BITS, GROUP)


def _packed(name: str, *shape: int, dtype: mx.Dtype, seed: int) -> dict[str, mx.array]:
    """A matrix whose products are about as large as what it is multiplied with."""
    parts = mx.quantize(shape[-1] ** -0.5 * normal(*shape, dtype=dtype, seed=seed), group_size=GROUP, bits=BITS)
    return {f"{name}_{part}": x for part, x in zip(("words", "scales", "biases"), parts, strict=True)}


def _stock_product(x: mx.array, w: qmv.Matrix) -> mx.array:
    return mx.quantized_matmul(x, w.words, w.scales, w.biases, group_size=w.group_size, bits=w.bits)


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _filled(results: mx.array, x: mx.array) -> mx.array:
    """As many of the results as x has numbers in a row, over again where there are fewer."""
    rows, width = x.shape
    return mx.tile(results, (1, -(-width // results.shape[1])))[:rows, :width]


def _plain(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """A product to which a bias and the stream are added."""
    rows, width, count, timed = shape

    def given(seed: int) -> Arrays:
        extras = {
            "bias": normal(count, dtype=dtype, seed=seed + 2),
            "residual": normal(rows, count, dtype=dtype, seed=3),
        }
        packed = _packed("w", count, width, dtype=dtype, seed=seed + 1)
        return {"x": normal(rows, width, dtype=dtype, seed=seed), **packed, **extras}

    def ours(given: Arrays) -> list[mx.array]:
        return [_product(given["x"], _matrix(given, "w"), bias=given["bias"], residual=given["residual"])]

    def stock(given: Arrays) -> list[mx.array]:
        return [_stock_product(given["x"], _matrix(given, "w")) + given["bias"] + given["residual"]]

    return Case(
        "qmv",
        f"{shape}, bias and residual",
        dtype,
        rows,
        given,
        ours,
        lambda given: stock(widened(given)),
        stock,
        lambda given, results: {**given, "x": _filled(results[0], given["x"])},
        timed,
    )


def _gated(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """Norm, two products and SwiGLU."""
    rows, width, count, timed = shape

    def given(seed: int) -> Arrays:
        arrays = {"x": normal(rows, width, dtype=dtype, seed=seed), "norm": normal(width, dtype=dtype, seed=seed + 1)}
        for i, name in enumerate(("gate", "up")):
            arrays |= _packed(name, count, width, dtype=dtype, seed=seed + 2 + i)
        return arrays

    def ours(given: Arrays) -> list[mx.array]:
        norm, up = qmv.Norm(given["norm"], EPS), _matrix(given, "up")
        return [_product(given["x"], _matrix(given, "gate"), norm=norm, up=up, activation="silu")]

    def stock(given: Arrays) -> list[mx.array]:
        y = mx.fast.rms_norm(given["x"], given["norm"], EPS)
        return [_silu(_stock_product(y, _matrix(given, "gate"))) * _stock_product(y, _matrix(given, "up"))]

    return Case(
        "qmv_gated",
        f"{shape}, norm and SwiGLU",
        dtype,
        rows,
        given,
        ours,
        lambda given: stock(widened(given)),
        stock,
        lambda given, results: {**given, "x": _filled(results[0], given["x"])},
        timed,
    )


def _three(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """Norm, and the projections of queries, keys and values, a quarter as many each of these."""
    rows, width, count, timed = shape
    counts = {"q": count, "k": -(-count // 4), "v": -(-count // 4)}

    def given(seed: int) -> Arrays:
        arrays = {"x": normal(rows, width, dtype=dtype, seed=seed), "norm": normal(width, dtype=dtype, seed=seed + 1)}
        for i, (name, own) in enumerate(counts.items()):
            arrays |= _packed(name, own, width, dtype=dtype, seed=seed + 2 + i)
        return arrays

    def ours(given: Arrays) -> list[mx.array]:
        matrices = [_matrix(given, name) for name in counts]
        return launch(qmv.three(given["x"], matrices, qmv.Norm(given["norm"], EPS)))

    def stock(given: Arrays) -> list[mx.array]:
        y = mx.fast.rms_norm(given["x"], given["norm"], EPS)
        return [_stock_product(y, _matrix(given, name)) for name in counts]

    return Case(
        "qmv_three",
        f"{shape}, norm",
        dtype,
        rows,
        given,
        ours,
        lambda given: stock(widened(given)),
        stock,
        lambda given, results: {**given, "x": _filled(results[0], given["x"])},
        timed,
    )


def _adapted(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """A product with an adapter beside it."""
    rows, width, count, timed = shape

    def given(seed: int) -> Arrays:
        a, b = (
            width**-0.5 * normal(width, RANK, dtype=mx.float32, seed=2),
            normal(RANK, count, dtype=mx.float32, seed=3),
        )
        packed = _packed("w", count, width, dtype=dtype, seed=seed + 1)
        return {"x": normal(rows, width, dtype=dtype, seed=seed), **packed, "a": a.astype(dtype), "b": b.astype(dtype)}

    def ours(given: Arrays) -> list[mx.array]:
        adapter = qmv.Adapter(given["a"], given["b"].T, 0.5)
        return [_product(given["x"], _matrix(given, "w"), adapter=adapter)]

    def stock(given: Arrays) -> list[mx.array]:
        x = given["x"]
        return [_stock_product(x, _matrix(given, "w")) + 0.5 * ((x @ given["a"]) @ given["b"])]

    return Case(
        "lora",
        f"{shape}, rank {RANK}",
        dtype,
        rows,
        given,
        ours,
        lambda given: stock(widened(given)),
        stock,
        lambda given, results: {**given, "x": _filled(results[0], given["x"])},
        timed,
    )


def _experts(shape: MatmulShape, dtype: mx.Dtype) -> Case:
    """Some experts of many for each token, and their weighted sum."""
    tokens, width, hidden, timed = shape
    top = TOP[hidden]

    def given(seed: int) -> Arrays:
        chosen = mx.argsort(normal(tokens, EXPERTS, dtype=mx.float32, seed=seed + 5), axis=-1)[:, :top]
        arrays = {
            "x": normal(tokens, width, dtype=dtype, seed=seed),
            "chosen": mx.contiguous(chosen.astype(mx.int32)),
            "weights": mx.softmax(normal(tokens, top, dtype=mx.float32, seed=seed + 6), axis=-1),
        }
        for i, name in enumerate(("gate", "up")):
            arrays |= _packed(name, EXPERTS, hidden, width, dtype=dtype, seed=seed + 2 + i)
        return arrays | _packed("down", EXPERTS, width, hidden, dtype=dtype, seed=seed + 4)

    def ours(given: Arrays) -> list[mx.array]:
        gate, up, down = (_matrix(given, name) for name in ("gate", "up", "down"))
        h = launch(qmv.gate_up(given["x"], gate, up, given["chosen"], "silu"))[0]
        return launch(qmv.down_combine(h, down, given["chosen"], given["weights"]))

    def stock(given: Arrays) -> list[mx.array]:
        def each(x: mx.array, name: str) -> mx.array:
            w = _matrix(given, name)
            options = {"rhs_indices": given["chosen"], "group_size": GROUP, "bits": BITS}
            return mx.gather_qmm(x, w.words, w.scales, w.biases, **options)

        rows = given["x"][:, None, None]
        h = _silu(each(rows, "gate")) * each(rows, "up")
        summed = (each(h, "down")[:, :, 0] * given["weights"][..., None]).sum(1)
        return [summed.astype(given["x"].dtype)]

    return Case(
        "moe",
        f"{shape} and back, {top} of {EXPERTS} experts",
        dtype,
        tokens,
        given,
        ours,
        lambda given: stock(widened(given)),
        stock,
        lambda given, results: {**given, "x": results[0]},
        timed,
        unread_bytes=_of_others,
    )


def _of_others(given: Arrays) -> int:
    """Bytes of the experts that no token visits."""
    visited = int(mx.any(given["chosen"].reshape(-1, 1) == mx.arange(EXPERTS), axis=0).sum())
    matrices = sum(array.nbytes for array in given.values() if array.shape[0] == EXPERTS)
    return matrices * (EXPERTS - visited) // EXPERTS


def _draw(batch: int, vocabulary: int, timed: bool, dtype: mx.Dtype) -> Case:
    """Draw a token; its probability is compared, since equally likely tokens are equally right."""

    def given(seed: int) -> Arrays:
        uniform = mx.random.uniform(shape=(batch,), key=mx.random.key(seed + 1))
        return {"logits": 3 * normal(batch, vocabulary, dtype=dtype, seed=seed), "uniform": uniform}

    def ours(given: Arrays) -> list[mx.array]:
        return sample.draw(given["logits"], given["uniform"], FILTERS)[:2]

    def stock(given: Arrays) -> list[mx.array]:
        logits = given["logits"].astype(mx.float32)
        kept = min(FILTERS.top_k, vocabulary)
        best = mx.argpartition(-logits, kept - 1, axis=-1)[:, :kept]
        some = mx.take_along_axis(logits, best, axis=-1)
        order = mx.argsort(-some, axis=-1)
        best, some = (mx.take_along_axis(x, order, axis=-1) for x in (best, some))
        weights = mx.softmax(some / FILTERS.temperature, axis=-1)
        weights = mx.where(mx.cumsum(weights, axis=-1) - weights < FILTERS.top_p, weights, 0)
        reached = mx.cumsum(weights, axis=-1) / weights.sum(-1, keepdims=True)
        place = mx.minimum((reached <= given["uniform"][:, None]).sum(-1, keepdims=True), kept - 1)
        token, logit = (mx.take_along_axis(x, place, axis=-1)[:, 0] for x in (best, some))
        return [token, logit - mx.logsumexp(logits, axis=-1)]

    def seen(given: Arrays, results: list[mx.array]) -> list[mx.array]:
        token, told = results
        logits = given["logits"].astype(mx.float32)
        own = mx.take_along_axis(logits, token[:, None].astype(mx.int32), axis=-1)[:, 0]
        return [told, own - mx.logsumexp(logits, axis=-1)]

    return Case(
        "sample",
        f"{batch} x {vocabulary} logits, top-k {FILTERS.top_k}, top-p {FILTERS.top_p}",
        dtype,
        vocabulary,
        given,
        ours,
        lambda given: [stock(given)[1]] * 2,
        stock,
        lambda given, results: {**given, "uniform": mx.sigmoid(results[1])},
        timed,
        seen,
    )
