"""Metal's extensions of C++ as specified: swizzles, quads, function constants, traits."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.simulator.compile import CompileError
from tests.simulator.run import Result, RunOptions, run_orders, run_text
from tests.simulator.text import captured

LANES = np.arange(32)
X = (LANES + 1).astype(np.float32)


def run_source(source: str, header: str = "", how: RunOptions | None = None, **more: Any) -> Result:
    """Run a kernel from x to y in one simdgroup; i is the lane's number."""
    kernel = mx.fast.metal_kernel("said", ["x"], ["y"], f"uint i = thread_index_in_simdgroup;\n{source}", header)
    arguments: dict[str, Any] = {"inputs": [mx.array(X)], "grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
    arguments |= {"output_shapes": [(32,)], "output_dtypes": [mx.float32], **more}
    return run_orders(captured(kernel, arguments), arguments, how)


def result_of(line: str, header: str = "", **more: Any) -> np.ndarray:
    """The output y for the input x of a run without faults."""
    result = run_source(line, header, **more)
    assert result.faults == []
    return result.outputs[0]


def results_of_lines(lines: list[str], header: str = "") -> np.ndarray:
    """(lines, 32): y for x after each of these blocks, in one kernel."""
    blocks = "\n".join("{ " + line.replace("y[i]", f"y[{32 * n} + i]") + " }" for n, line in enumerate(lines))
    return result_of(blocks, header, output_shapes=[(len(lines), 32)])


VECTORS = {
    "parts are read": ("float4 v = float4(x[i], 2, 3, 4); y[i] = v.wzyx.x * 10 + v.xy.y + v.yyx.z * 0;", 42 + 0 * X),
    "colours are parts": ("float4 v = float4(x[i], 2, 3, 4); y[i] = v.bgra.x + v.r;", 3 + X),
    "parts of pointers": ("float2 v = float2(x[i], 7); thread float2* p = &v; y[i] = p->yx.x;", 7 + 0 * X),
    "parts are written": ("float4 v = 0; v.zx = float2(x[i], 5); y[i] = v.z * 100 + v.x;", 100 * X + 5),
    "parts are changed": ("float3 v = 1; v.xz += float2(x[i], 2); v.rg *= 2; y[i] = v.x * 10 + v.z;", 20 * (X + 1) + 3),
    "halves": ("float4 v = float4(1, 2, 3, x[i]); y[i] = v.lo.y + v.hi.y + v.even.y + v.odd.x;", 2 + X + 3 + 2),
    "halves are written": ("float4 v = 0; v.hi = float2(1, x[i]); v.even = float2(4, 5); y[i] = v.w + v.z;", X + 5),
    "a part of what is read": ("auto v = float4(x[i], 1, 2, 3).zyx; y[i] = v.z + dot(v.xy, float2(1, 10));", X + 12),
    "braces": ("float4 v = float4{x[i], 2, 3, 4}; float2 w{5, x[i]}; y[i] = v.w + w.x + w.y;", 9 + X),
    "parts in braces": ("float4 v{float2{x[i], 2}, 3, 4}; y[i] = v.x + v.z;", X + 3),
    "parts in parentheses": ("float4 v = float4(1, float2(x[i], 3), 4); y[i] = v.y + float3(v.xy, 8).z;", X + 8),
    "nothing in braces": ("float4 v = float4{}; float z = float{}; y[i] = v.x + v.w + z;", 0 * X),
    "numbers for all": ("float3 v = x[i]; int2 n = 3; y[i] = v.z + n.y;", X + 3),
    "other types": ("int3 n = int3(float3(x[i], -1.5f, 2.5f)); y[i] = n.x + n.y + n.z;", X - 1 + 2),
    "comparisons": (
        "bool4 b = float4(1, 2, 3, x[i]) > 2; y[i] = any(b) + 2 * all(b.zw) + 4 * all(!b);",
        1 + 2 * (X > 2),
    ),
    "choices": ("float2 v = select(float2(1, 2), float2(x[i], 9), bool2(true, false)); y[i] = v.x + v.y;", X + 2),
    "functions by element": ("float2 v = precise::sqrt(float2(x[i] * x[i], 4)); y[i] = v.x + v.y;", X + 2),
    "least and most": (
        "float2 v = max(float2(x[i], 1), float2(3, 2)); y[i] = min(v, 10.0f).x + v.y;",
        np.clip(X, 3, 10) + 2,
    ),
    "lengths": ("y[i] = length(float2(3, 4)) * x[i] + cross(float3(1, 0, 0), float3(0, 1, 0)).z;", 5 * X + 1),
    "parts in a buffer": (
        "const device float4* v = (const device float4*)x; y[i] = v[i / 4].wzyx[i % 4];",
        X.reshape(8, 4)[:, ::-1].reshape(-1),
    ),
}


def test_vectors_and_swizzles_follow_the_specification() -> None:
    gots = results_of_lines([line for line, _ in VECTORS.values()])
    wrong = [
        name for got, (name, (_, want)) in zip(gots, VECTORS.items(), strict=True) if not np.array_equal(got, want)
    ]
    assert wrong == []


def test_swizzles_of_a_vector_in_a_buffer_can_be_written() -> None:
    line = "if (i < 16) ((device float2*)y)[i].yx = float2(x[2 * i], x[2 * i + 1]);"
    assert np.array_equal(result_of(line), X.reshape(16, 2)[:, ::-1].reshape(-1))


def test_struct_members_named_like_swizzles_are_members() -> None:
    header = "struct Pair { float lo; int xy; };\n"
    assert np.array_equal(result_of("Pair p = {x[i], 3}; p.lo += 1; y[i] = p.lo + p.xy;", header), X + 4)


ONE = np.float32(1)
LITERALS = {
    "1.0/3.0*x[i]+.3": ONE / 3 * X + np.float32(0.3),
    "x[i] / (1e0 + x[i]) - exp(0.*x[i])": X / (ONE + X) - ONE,
    "x[i] * TENTH + 0x1.8p1f + 0x1e3": X * np.float32(0.1) + 3 + 0x1E3,
    "half(x[i]) * 1.5h + 1.H + .5h": 1.5 * X + 1.5,
    "(half(x[i]) + 2048.0h) - 2048.0h": (X.astype(np.float16) + np.float16(2048)) - np.float16(2048),
    "w[i % 2]": np.where(LANES % 2, np.float16(0.1), np.float16(20)).astype(np.float32),
}


def test_literals_are_float_or_with_h_half() -> None:
    header = "#define TENTH 0.1\nconstant half w[2] = {2e1h, 0.1h};\n"
    gots = results_of_lines([f"y[i] = float({line});" for line in LITERALS], header)
    assert [
        line for got, (line, want) in zip(gots, LITERALS.items(), strict=True) if not np.array_equal(got, want)
    ] == []


def test_a_threadgroup_variable_is_shared_by_all_lanes() -> None:
    line = "threadgroup float s; if (i == 3) s = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = s;"
    assert np.array_equal(result_of(line), np.full(32, 4))


REFUSED = {
    "a double": ("double d = x[i]; y[i] = d;", "there is no double"),
    "a cast to double": ("y[i] = float(double(x[i]) / 3);", "there is no double"),
    "one number in braces": ("float4 v = float4{1.0f}; y[i] = v.x;", "float4{1.0f}"),
    "a component that is not there": ("float2 v = x[i]; y[i] = v.xyz.x;", "no such component"),
    "a component written twice": ("float2 v = 0; v.xx = float2(1, 2); y[i] = v.x;", "written twice"),
    "too few numbers": ("float3 v = float3(1, 2); y[i] = v.x;", "no matching function"),
    "a half that becomes a bfloat": ("bfloat b = half(x[i]); y[i] = b;", "conversion"),
}


@pytest.mark.parametrize(("line", "says"), REFUSED.values(), ids=list(REFUSED))
def test_unsupported_syntax_is_refused(line: str, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        run_source(line)


def shifted(values: np.ndarray, fill: np.ndarray, by: int, size: int = 32) -> np.ndarray:
    """Values of `by` lanes before (after if negative), filled in from the other end of `fill`."""
    both = [np.concatenate([f, v, f]) for v, f in zip(values.reshape(-1, size), fill.reshape(-1, size), strict=True)]
    return np.concatenate([one[size - by : 2 * size - by] for one in both])


Q = X.reshape(8, 4)
F = X + 100
TOGETHER = {
    "simd_sum(float2(x[i], 1)).y": np.full(32, 32),
    "simd_product(i < 3 ? x[i] : 1.0f)": np.full(32, 6),
    "simd_shuffle_and_fill_up(x[i], x[i] + 100.0f, 3)": shifted(X, F, 3),
    "simd_shuffle_and_fill_down(x[i], x[i] + 100.0f, 5)": shifted(X, F, -5),
    "simd_shuffle_and_fill_up(x[i], x[i] + 100.0f, 3, 8)": shifted(X, F, 3, 8),
    "simd_shuffle_and_fill_down(x[i], x[i] + 100.0f, 1, 16)": shifted(X, F, -1, 16),
    "quad_shuffle_and_fill_up(x[i], x[i] + 100.0f, 1)": shifted(X, F, 1, 4),
    "quad_shuffle_and_fill_down(x[i], x[i] + 100.0f, 2)": shifted(X, F, -2, 4),
    "quad_sum(x[i])": Q.sum(1).repeat(4),
    "quad_product(x[i])": Q.prod(1).repeat(4),
    "quad_max(x[i])": Q.max(1).repeat(4),
    "quad_min(x[i])": Q.min(1).repeat(4),
    "quad_or(i)": (np.arange(8) * 4 + 3).repeat(4),
    "quad_any(i == 5)": np.arange(32) // 4 == 1,
    "quad_all(i < 6)": np.arange(32) // 4 == 0,
    "quad_broadcast(x[i], 2)": Q[:, 2].repeat(4),
    "quad_broadcast_first(x[i])": Q[:, 0].repeat(4),
    "quad_shuffle(x[i], 3 - i % 4)": Q[:, ::-1].reshape(-1),
    "quad_shuffle_xor(x[i], 1)": X[LANES ^ 1],
    "quad_shuffle_up(x[i], 1)": np.where(LANES % 4, X - 1, X),
    "quad_shuffle_down(x[i], 1)": np.where(LANES % 4 < 3, X + 1, X),
    "quad_shuffle_rotate_up(x[i], 1)": np.roll(Q, 1, 1).reshape(-1),
    "quad_shuffle_rotate_down(x[i], 1)": np.roll(Q, -1, 1).reshape(-1),
    "quad_prefix_inclusive_sum(x[i])": Q.cumsum(1).reshape(-1),
    "quad_prefix_exclusive_sum(x[i])": (Q.cumsum(1) - Q).reshape(-1),
    "simd_prefix_exclusive_product(i < 4 ? 2.0f : 1.0f)": np.minimum(2 ** np.minimum(LANES, 4), 16),
    "popcount(ulong(simd_ballot(i % 3 == 0)))": np.full(32, 11),
    "popcount((simd_vote::vote_t)simd_ballot(i % 3 == 1))": np.full(32, 11),
    "simd_is_first()": LANES == 0,
    "thread_index_in_quadgroup + 10 * quadgroup_index_in_threadgroup": LANES % 4 + 10 * (LANES // 4),
    "quadgroups_per_threadgroup + 100 * dispatch_simdgroups_per_threadgroup": np.full(32, 108),
}


def test_simd_and_quad_functions_follow_the_specification() -> None:
    gots = results_of_lines([f"y[i] = float({line});" for line in TOGETHER])
    assert [
        line for got, (line, want) in zip(gots, TOGETHER.items(), strict=True) if not np.array_equal(got, want)
    ] == []


NUMBERS = {
    "ceildiv(int64_t(7), 2)": 4,
    "ceildiv(7, 2u)": 4,
    "atan2(1.0f, -1.0f)": 3 * np.pi / 4,
    "copysign(2.0f, -0.0f)": -2,
    "fmod(-7.5f, 2.0f)": -1.5,
    "mix(1.0f, 5.0f, 0.25f)": 2,
    "step(2.0f, 2.0f) + step(2.1f, 2.0f)": 1,
    "smoothstep(0.0f, 2.0f, 1.0f)": 0.5,
    "saturate(3.0f) + saturate(-1.0f)": 1,
    "fract(-0.25f)": 0.75,
    "precise::powr(2.0f, 3.0f)": 8,
    "ldexp(0.75f, 4)": 12,
    "float(signbit(-0.0f)) + float(isnormal(1e-40f))": 1,
    "rotate(0x80000001u, 4u)": 0x18,
    "reverse_bits(ushort(1))": 32768,
    "mulhi(0x80000000u, 6u)": 3,
    "addsat(uchar(200), uchar(100)) + subsat(short(-32768), short(1))": 255 - 32768,
    "extract_bits(-16, 4u, 8u)": -1,
    "insert_bits(0xffu, 0u, 4u, 2u)": 0xCF,
    "absdiff(-2147483647, 2147483647) == 4294967294u": 1,
    "hadd(uchar(255), uchar(254))": 254,
    "select(1.0f, 2.0f, true)": 2,
    "clz(1u) + popcount(uint2(3, 8)).x": 33,
    "min3(2.0f, 1.0f, 3.0f) + 10 * max3(1, 3, 2) + 100 * median3(float3(5, 1, 3), float3(4), float3(9)).y": 431,
    "isnan(NAN)": 1,
    "distance(float2(0, 1), float2(3, 5))": 5,
}


def test_scalar_functions_follow_the_specification() -> None:
    gots = results_of_lines([f"y[i] = float({line});" for line in NUMBERS])
    np.testing.assert_allclose(gots[:, 0], list(NUMBERS.values()), rtol=1e-6)


TRAITS = [
    "is_same_v<remove_cv_t<const int>, int> && is_same_v<remove_const_t<float>, float>",
    "is_same_v<half, float16_t>",
    "!metal::is_same_v<half, float>",
    "metal::is_floating_point_v<half> && is_floating_point_v<bfloat>",
    "!is_floating_point_v<int>",
    "metal::is_integral_v<ushort>",
    "metal::is_unsigned_v<uchar> && !metal::is_unsigned_v<float>",
    "metal::is_signed_v<short>",
    "metal::is_arithmetic_v<half>",
    "is_same_v<metal::make_unsigned_t<short>, ushort>",
    "is_same_v<make_signed_t<ulong>, long>",
    "is_same_v<metal::conditional_t<true, int, float>, int>",
    "is_same_v<enable_if_t<true, half>, half>",
    "metal::true_type::value && !metal::false_type::value",
    "metal::bool_constant<true>::value",
    "metal::integral_constant<int, 3>::value == 3",
    "metal::is_pointer_v<device float*>",
    "metal::numeric_limits<half>::max() == half(65504.0f)",
    "metal::numeric_limits<half>::lowest() == half(-65504.0f)",
    "float(metal::numeric_limits<half>::epsilon()) == 0x1p-10f",
    "float(numeric_limits<bfloat>::epsilon()) == 0x1p-7f",
    "isinf(numeric_limits<bfloat>::infinity())",
    "isnan(numeric_limits<float>::quiet_NaN())",
    "numeric_limits<int>::min() == -2147483647 - 1",
    "float(numeric_limits<half>::min()) == 0x1p-14f",
]


def test_type_traits_follow_the_specification() -> None:
    gots = results_of_lines([f"y[i] = float({line});" for line in TRAITS])
    assert [line for line, got in zip(TRAITS, gots, strict=True) if not got.all()] == []


def test_overloads_are_chosen_by_traits() -> None:
    header = """
    template <typename T, metal::enable_if_t<metal::is_floating_point_v<T>, bool> = true>
    inline float kind_of(T x) { return 1.0f; }
    template <typename T, metal::enable_if_t<metal::is_integral_v<T>, bool> = true>
    inline float kind_of(T x) { return 2.0f; }
    """
    assert (result_of("y[i] = kind_of(half(x[i])) + 10.0f * kind_of(i);", header) == 21).all()


CONSTANT = """
struct Scales { float all; int shift; };
constant float table[3] = {1.0f, 2.0f, 3.0f};
constant constexpr int OFFSET = 2;
constexpr constant int OTHER = 1;
inline float scaled(float x, constant Scales& s) { return x * s.all + float(s.shift); }
inline float first(constant float* of) { return of[OFFSET]; }
template <typename T> inline T whole(const constant T& x) { return x; }
constant Scales scales = {2.0f, 3};
"""


def test_constants_are_read_through_references_and_pointers() -> None:
    line = "y[i] = scaled(x[i], scales) + first(table) + whole(table[OTHER]);"
    assert np.array_equal(result_of(line, CONSTANT), 2 * X + 3 + 3 + 2)


def test_global_constants_can_be_vectors_in_braces() -> None:
    header = "constant float2 two[2] = {{1, 2}, {3, 4}}; constant float4 four = {5, 6, 7, 8};\n"
    assert np.array_equal(result_of("y[i] = two[i % 2].y + four.zw.y;", header), np.where(LANES % 2, 12, 10))


def test_writing_a_constant_does_not_compile() -> None:
    with pytest.raises(CompileError, match=r"read-only|const"):
        run_source("table[0] = x[i]; y[i] = table[0];", CONSTANT)


SET = """
constant bool doubled [[function_constant(3)]];
constant int more [[function_constant(4)]];
constant float other [[function_constant(5)]];
constant int left = is_function_constant_defined(more) ? more : 7;
"""
LINE = "y[i] = (doubled ? 2.0f : 1.0f) * x[i] + float(left); if (is_function_constant_defined(other)) y[i] += other;"


@pytest.mark.parametrize(("values", "want"), [({3: True}, 2 * X + 7), ({3: False, 4: 5}, X + 5)])
def test_function_constants_have_the_given_values(values: dict[int, Any], want: np.ndarray) -> None:
    how = RunOptions(constants=tuple(values.items()))
    assert np.array_equal(result_of(LINE.replace("y[i] += other", "y[i] = other"), SET, how=how), want)


def test_reading_a_function_constant_without_a_value_is_a_fault() -> None:
    result = run_source(LINE, SET, RunOptions(constants=((4, 1),)))
    assert {fault.kind for fault in result.faults} == {"unset"}
    assert "doubled" in result.faults[0].message


def test_comments_may_be_non_ascii() -> None:
    assert np.array_equal(result_of("y[i] = x[i]; // caf\u00e9 \u2192 \U0001f600", "// \u00fc\n/* \u4e2d */\n"), X)
    with pytest.raises(CompileError):
        run_source("float \u00fc\u2192 = x[i]; y[i] = 0.0f;")


def test_clang_accepts_the_language_too() -> None:
    kernel = mx.fast.metal_kernel("fast", ["x"], ["y"], "uint i = thread_index_in_simdgroup; y[i] = float2(x[i]).yx.x;")
    arguments: dict[str, Any] = {"inputs": [mx.array(X)], "grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
    arguments |= {"output_shapes": [(32,)], "output_dtypes": [mx.float32]}
    for how in (RunOptions(build="fast"), RunOptions(build="sanitized")):
        assert np.array_equal(run_text(captured(kernel, arguments), arguments, how).outputs[0], X)
