"""Faults found in a kernel's text before it runs: language rules, mismatched address spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.simulator import front
from tests.simulator.lint import findings, without_prefixes
from tests.simulator.text import captured, cpp, signature

RULES = {
    "float x = 1.0;": "a double",
    "double x = y;": "no double",
    "goto end;": "goto",
    "long long x = 0;": "long long",
    "auto f = [&](int i) { return i; };": "lambdas",
    "auto [a, b] = pair;": "structured bindings",
    "float y = exp(x);": "precise:: or fast::",
    "float y = rsqrt(x) + 1.0f;": "precise:: or fast::",
    "float* p = out;": "needs an address space",
    "void f(float& x) {}": "needs an address space",
    "threadgroup float x[32] = {0};": "takes no initializer",
    "threadgroup int n = 0;": "takes no initializer",
    "typedef threadgroup float Shared;": "an alias of a type",
    "struct S { threadgroup float x[3]; };": "a member of a struct",
    "static float x[3];": "static",
    "float y = std::exp(x);": "metal::",
    "float f(int n) { return n < 2 ? 1.0f : f(n - 1); }": "calls itself",
    "float g(float x); float f(float x) { return g(x); } float g(float x) { return f(x); }": "calls itself",
    "T ceildiv(T a, T b) { return a; }": "of this name",
    "// caf\u00e9": "ASCII",
    "int* x = new int[3];": "allocated",
}
FINE = """
// A comment may say 1.0 or exp(x), and "double".
template <typename T, typename P>
inline float f(const device T* x, P p, thread float& y, threadgroup float (*z)[8]) {
  y = precise::exp(1.5e-3f) + fast::log2(2.0f) + float(x[0]) * float(p[1]) + .5f;
  const thread float* q = &y;
  const float4 v = float4(y);
  return v.zyx.x + (*q) * 2.0f;
}
"""


@pytest.mark.parametrize(("line", "rule"), RULES.items())
def test_a_line_that_metal_rejects_is_found(line: str, rule: str) -> None:
    assert any(rule in finding.rule for finding in findings(line)), findings(line)


def test_a_valid_text_has_no_findings() -> None:
    assert findings(FINE, "uint i = thread_position_in_grid.x;") == []


def test_a_source_without_attributes_is_found() -> None:
    assert [f.rule for f in findings("", "y[0] = x[0];")]


@pytest.mark.parametrize("path", sorted(Path("macllm/ops/metal").rglob("*.metal")), ids=lambda p: p.name)
def test_kernels_keep_the_rules(path: Path, repository: Path) -> None:
    assert findings(without_prefixes((repository / path).read_text(encoding="ascii"))) == []


def text_of(source: str, header: str = "") -> str:
    kernel = mx.fast.metal_kernel("kernel", ["x"], ["y"], source, header)
    arguments: dict[str, Any] = {"inputs": [mx.zeros(32)], "template": [("T", mx.float32)]}
    arguments |= {
        "grid": (32, 1, 1),
        "threadgroup": (32, 1, 1),
        "output_shapes": [(32,)],
        "output_dtypes": [mx.float32],
    }
    return captured(kernel, arguments)


SOURCE = """
    threadgroup float held[32];
    uint i = thread_position_in_grid.x;
    held[i] = double_of(x, i);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = T(held[31 - i]);
"""
HEADER = "inline float double_of(const device float* from, uint i) { return 2.0f * from[i]; }\n"
MEMORIES = {
    "a pointer to other memory": ("double_of(x, i)", "double_of(held, i)", "no matching function"),
    "threadgroup memory in a function": (
        "held[i] = ",
        "{ threadgroup float other[4]; other[0] = 1.0f; } held[i] = ",
        "",
    ),
    "a write to what is constant": ("y[i] = T", "x[i] = T", "read-only"),
    "a threadgroup's array with values": ("held[32];", "held[32] = {0.0f};", "initializer"),
    "a cast between memories": ("T(held[31 - i])", "*(device float*)(&held[31 - i])", "address space"),
}


@pytest.mark.skipif(not front.there(), reason="needs clang")
def test_memories_that_fit_together_are_fine() -> None:
    assert front.complaints(text_of(SOURCE, HEADER)) == []


@pytest.mark.skipif(not front.there(), reason="needs clang")
@pytest.mark.parametrize(("part", "other", "complaint"), MEMORIES.values(), ids=list(MEMORIES))
def test_memories_that_do_not_fit_together_are_found(part: str, other: str, complaint: str) -> None:
    found = front.complaints(text_of(SOURCE.replace(part, other), HEADER))
    assert any(complaint in line for line in found), found


def test_comments_declare_nothing() -> None:
    source = SOURCE + "    // threadgroup float other[4]; and [[kernel]] void nothing() {\n"
    text = text_of(source, HEADER + "/* threadgroup int none[2]; */\n")
    assert cpp(text).count("simulator::shared<") == 1
    assert signature(text).instance.startswith("custom_kernel_kernel")
