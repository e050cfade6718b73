"""Counts of Metal dispatches and their bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from decode_steps import CONFIGS, macllm_step, mlx_lm_step
from dispatches import Dispatch, dispatches
from primitives import trace
from traffic import PAGE, Count, Row, goals, line, page, row_of

from macllm.ops.metal import launch
from macllm.ops.metal.attention import kv_decode
from macllm.ops.metal.quantized_matvec import qmv

X = mx.zeros((4, 32))
MATRIX = (mx.zeros((256, 64), mx.uint32), mx.zeros((256, 8), mx.bfloat16), mx.zeros((256, 8), mx.bfloat16))
MATRIX_BYTES = sum(part.nbytes for part in MATRIX)
VECTOR = mx.zeros((1, 512), mx.bfloat16)


def counted(function: Callable[..., Any], *arrays: mx.array, cached: int = 0) -> list[Dispatch]:
    """Dispatches of a function with one or more results; the last `cached` arrays are keys and values."""
    graph = trace(lambda *given: made if isinstance(made := function(*given), list | tuple) else [made], *arrays)
    return dispatches(graph, {array.name for array in graph.inputs[len(arrays) - cached :]})


def names(function: Callable[..., Any], *arrays: mx.array) -> list[str]:
    return [one.name for one in counted(function, *arrays)]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(2, 2, 32),
        lambda x: x.flatten(),
        lambda x: x.T,
        lambda x: x[1:3, ::2],
        lambda x: x[None, :, None],
        lambda x: x[:, None].squeeze(1),
        lambda x: mx.broadcast_to(x, (5, 4, 32)),
        lambda x: mx.split(x, 2, axis=1),
        lambda x: mx.stop_gradient(x),
        lambda x: mx.contiguous(x),
        lambda x: x.view(mx.uint32),
        lambda x: x.astype(mx.float32),
    ],
)
def test_a_view_needs_no_dispatch(view: Callable[[mx.array], Any]) -> None:
    assert counted(view, X) == []


def test_a_reshape_without_strides_is_a_copy() -> None:
    assert counted(lambda x: x.T.reshape(4, 32), X) == [Dispatch("Copy", 512, 512)]


def test_a_small_part_of_a_large_buffer_is_copied_to_be_contiguous() -> None:
    large = mx.zeros((64, 4096))
    assert counted(lambda x: mx.contiguous(x[:1]), large) == [Dispatch("Copy", 16384, 16384)]


def test_an_elementwise_operation_reads_and_writes_each_number_once() -> None:
    assert counted(lambda x: mx.exp(x), X) == [Dispatch("Exp", 512, 512)]
    assert counted(lambda x: x * x, X) == [Dispatch("Multiply", 512, 512)]
    assert counted(lambda x: x.astype(mx.bfloat16), X) == [Dispatch("AsType", 512, 256)]


def test_memory_behind_a_broadcast_counts_once() -> None:
    assert counted(lambda x, y: x + y, X, mx.zeros((32,))) == [Dispatch("Add", 512 + 128, 512)]


def test_a_compiled_function_is_one_dispatch() -> None:
    chain = mx.compile(lambda x, y: x * mx.sigmoid(x) * y)
    assert len(counted(chain, X, X)) == 3  # as MLX tells it

    def compiled_inside(x: mx.array, y: mx.array) -> mx.array:
        return mx.compile(lambda x, y: x * mx.sigmoid(x) * y)(x, y)

    assert counted(compiled_inside, X, mx.zeros((4, 32))) == [Dispatch("Compiled", 1024, 512)]


def test_a_compiled_function_that_is_no_elementwise_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="Softmax"):
        counted(lambda x: mx.compile(lambda x: mx.softmax(x * 2, axis=-1))(x), X)


def test_an_op_with_a_metal_kernel_is_one_dispatch() -> None:
    weight, heads = mx.zeros((32,)), mx.zeros((1, 2, 1, 32))
    rope = {"traditional": False, "base": 1e4, "scale": 1.0, "offset": 7}
    assert counted(lambda x, w: mx.fast.rms_norm(x, w, 1e-5), X, weight) == [Dispatch("RMSNorm", 512 + 128, 512)]
    assert names(lambda x: mx.fast.rope(x, 32, **rope), heads) == ["RoPE"]
    assert names(lambda x: mx.fast.rope(x, 16, **rope), heads) == ["Copy", "RoPE"]
    assert names(lambda x: mx.dequantize(*mx.quantize(x, 32, 4), 32, 4), X) == ["Quantize", "Quantize"]
    assert names(lambda x: mx.argmax(mx.softmax(x, axis=-1) - mx.logsumexp(x, axis=-1, keepdims=True)), X) == [
        "Softmax",
        "LogSumExp",
        "Subtract",
        "ArgReduce",
    ]


def test_a_product_with_a_packed_matrix_reads_it_once() -> None:
    made = counted(lambda x, *w: mx.quantized_matmul(x, *w), VECTOR, *MATRIX)
    assert made == [Dispatch("QuantizedMatmul", MATRIX_BYTES + 1024, 512)]


def test_each_query_head_reads_shared_packed_keys_again() -> None:
    q = mx.zeros((1, 2, 4, 1, 128), mx.bfloat16)
    keys = [mx.zeros((1, 2, 1, 300, n), t) for n, t in ((16, mx.uint32), (2, mx.bfloat16), (2, mx.bfloat16))]
    held = 2 * 300 * 72
    (made,) = counted(lambda q, *k: mx.quantized_matmul(q, *k), q, *keys, cached=3)
    assert made == Dispatch("QuantizedMatmul", held + q.nbytes, 8 * 300 * 2, 3 * held, attention=True)


@pytest.mark.parametrize(("keys", "expected"), [(512, 3), (1024, 4)])
def test_split_attention_over_packed_keys_counts_as_attention(keys: int, expected: int) -> None:
    q = mx.zeros((1, 8, 1, 128), mx.bfloat16)
    packed = [mx.zeros((1, 8, keys, n), t) for n, t in ((16, mx.uint32), (2, mx.bfloat16), (2, mx.bfloat16))]

    def attend(q: mx.array, *parts: mx.array) -> mx.array:
        scores = mx.softmax(mx.quantized_matmul(q, *parts[:3]), axis=-1, precise=True)
        return mx.exp(mx.quantized_matmul(scores, *parts[3:], transpose=False))

    made = counted(attend, q, *packed, *packed, cached=6)
    assert [one.attention for one in made] == [True] * expected + [False]


def test_fused_attention_needs_a_second_dispatch_for_many_keys() -> None:
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)

    q = mx.zeros((1, 8, 1, 64), mx.bfloat16)
    few, many = (mx.zeros((1, 2, keys, 64), mx.bfloat16) for keys in (1023, 1024))
    both = 2 * few.nbytes
    (one,) = counted(attend, q, few, mx.zeros(few.shape, mx.bfloat16))
    assert one == Dispatch("ScaledDotProductAttention", both + q.nbytes, q.nbytes, 3 * both, attention=True)
    first, last = counted(attend, q, many, mx.zeros(many.shape, mx.bfloat16))
    assert first.again_bytes == 0
    assert first.written_bytes == last.read_bytes == 8 * 64 * (64 * 2 + 8)


def test_a_cache_write_counts_its_row() -> None:
    cache, row = mx.zeros((1, 2, 256, 64), mx.bfloat16), mx.zeros((1, 2, 1, 64), mx.bfloat16)

    def put(cache: mx.array, row: mx.array) -> mx.array:
        cache[:, :, 7:8] = row
        return cache

    assert counted(put, cache, row) == [Dispatch("SliceUpdate", row.nbytes, row.nbytes)]


def test_a_shared_cache_is_copied_before_a_write() -> None:
    cache, row = mx.zeros((1, 2, 256, 64), mx.bfloat16), mx.zeros((1, 2, 1, 64), mx.bfloat16)

    def put(cache: mx.array, row: mx.array) -> list[mx.array]:
        before = mx.exp(cache[:, :, :7])
        cache[:, :, 7:8] = row
        return [before, cache]

    assert names(put, cache, row) == ["Exp", "Copy", "SliceUpdate"]


def test_a_gather_reads_its_rows() -> None:
    rows = mx.zeros((3,), mx.uint32)
    assert counted(lambda x, i: x[i], mx.zeros((1000, 32)), rows) == [Dispatch("Gather", 12 + 3 * 128, 3 * 128)]


def test_a_product_with_chosen_experts_reads_only_them() -> None:
    stack = [mx.zeros((16, *part.shape), part.dtype) for part in MATRIX]
    chosen, x = mx.zeros((1, 2), mx.uint32), mx.zeros((1, 1, 1, 512), mx.bfloat16)
    made = counted(lambda x, chosen, *w: mx.gather_qmm(x, *w, rhs_indices=chosen), x, chosen, *stack)
    assert [one.name for one in made] == ["Arange", "GatherQMM"]
    assert 2 * MATRIX_BYTES < made[1].read_bytes < 2.02 * MATRIX_BYTES


@pytest.mark.parametrize(("count", "expected"), [(128, 1), (2048, 1), (2049, 4), (5000, 6)])
def test_a_partition_is_a_merge_sort_of_blocks(count: int, expected: int) -> None:
    assert len(counted(lambda x: mx.argpartition(x, 8, axis=-1), mx.zeros((count,)))) == expected


def test_a_large_reduction_needs_two_dispatches() -> None:
    assert names(lambda x: x.sum(), mx.zeros((4096,))) == ["Reduce"]
    assert names(lambda x: x.sum(), mx.zeros((4097,))) == ["Reduce", "Reduce"]
    assert names(lambda x: x.sum(-1), mx.zeros((2, 8192))) == ["Reduce"]


def test_a_concatenation_copies_each_array() -> None:
    assert names(lambda x, y: mx.concatenate([x, y]), X, X) == ["Copy", "Copy"]


def test_a_primitive_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match="FFT"):
        counted(lambda x: mx.fft.rfft(x), X)


def test_counting_evaluates_nothing() -> None:
    before = mx.get_active_memory()
    large = mx.zeros((1 << 20, 1 << 20), mx.bfloat16)
    assert counted(lambda x: x + x, large) == [Dispatch("Add", 1 << 41, 1 << 41)]
    assert mx.get_active_memory() - before < 1 << 20


def test_a_kernel_of_ours_has_its_files_name_and_reads_its_inputs_once() -> None:
    def product(x: mx.array, *w: mx.array) -> mx.array:
        return qmv.product(x, qmv.Matrix(*w, 4, 64), qmv.Epilogue())

    (one,) = counted(product, VECTOR, *MATRIX)
    assert (one.name, one.written_bytes) == ("qmv", 512)
    assert MATRIX_BYTES + 1024 <= one.read_bytes <= MATRIX_BYTES + 1024 + 64


def test_our_attention_reads_shared_keys_once_for_all_heads() -> None:
    rules = kv_decode.DecodeParams(0.1, True, mx.array([0]))

    def attend(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        return launch(kv_decode.decode(q, {"keys": k[:, :, :700], "values": v[:, :, :700]}, rules))

    for group, passes in ((4, 1), (16, 1), (32, 2)):
        q, room = mx.zeros((1, 2 * group, 1, 64)), mx.zeros((1, 2, 1024, 64))
        (one,) = counted(attend, q, room, mx.zeros(room.shape), cached=2)
        assert one.attention
        assert one.again_bytes == (passes - 1) * 2 * 2 * 700 * 256


def a_row(**changed: Any) -> Row:
    ours = Count(10, 100, 20, 20, {}) if "ours" not in changed else changed.pop("ours")
    return Row(
        **{"model": "m", "context": 8192, "bits": 4, "ours": ours, "theirs": Count(20, 200, 70, 70, {})} | changed
    )


def test_a_missed_goal_names_its_rows() -> None:
    met = a_row(least_bytes=100)
    assert all(not goal.missed for goal in goals([met]))
    many = a_row(least_bytes=90, ours=Count(20, 100, 30, 30, {}))
    assert [goal.missed for goal in goals([met, many])] == [
        ("m 4 bit 8192",),
        ("m 4 bit 8192 (+11.1%)",),
        ("m 4 bit 8192 (2.33)",),
        ("m 4 bit 8192 (2.33)",),
    ]
    assert "MISSED by m 4 bit 8192" in str(goals([many])[0])
    assert "+" not in line(met)


@pytest.mark.slow
def test_a_step_of_llama_has_fewer_dispatches_and_reads_little_more_than_the_least() -> None:
    rows = [row_of("Llama-3.2-1B", context, bits) for context in (256, 8192, 32768) for bits in (4, None)]
    fewer, near, asked, _ = goals(rows)
    assert (fewer.missed, near.missed, asked.missed) == ((), (), ())


@pytest.mark.slow
def test_the_page_shows_the_counts() -> None:
    written = PAGE.read_text(encoding="utf-8")
    for told in page([row_of("Qwen3-30B-A3B", 8192, 4)]).splitlines():
        assert f"\n{told}\n" in written


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_both_steps_have_the_same_weights(name: str) -> None:
    ours, theirs = (make(CONFIGS[name], 256, 4) for make in (macllm_step, mlx_lm_step))
    assert ours.weights_bytes == theirs.weights_bytes
