"""Threadgroup memory is shared by all lanes, or its declaration is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.simulator import front
from tests.simulator.__main__ import main
from tests.simulator.compile import CompileError
from tests.simulator.memories import declarations
from tests.simulator.run import Result, run_orders
from tests.simulator.text import captured, cpp

SOURCE = """
    DECLARED
    uint i = thread_position_in_threadgroup.x;
    held[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = held[63 - i];
"""
X = np.arange(64, dtype=np.float32)


def text_of(declared: str, header: str = "", source: str = SOURCE) -> tuple[str, dict[str, Any]]:
    kernel = mx.fast.metal_kernel("held", ["x"], ["y"], source.replace("DECLARED", declared), header)
    arguments: dict[str, Any] = {"inputs": [mx.array(X)], "grid": (64, 1, 1), "threadgroup": (64, 1, 1)}
    arguments |= {"output_shapes": [(64,)], "output_dtypes": [mx.float32]}
    return captured(kernel, arguments), arguments


def ran(declared: str, header: str = "") -> Result:
    return run_orders(*text_of(declared, header))


INITIALISED = {
    "zeros": "threadgroup float held[64] = {0};",
    "braces": "threadgroup float held[64]{};",
    "a list": "threadgroup float other[2] = {1.0f, 2.0f}; threadgroup float held[64];",
    "rows": "threadgroup float rows[2][2] = {{1, 2}, {3, 4}}; threadgroup float held[64];",
    "a number": "threadgroup int n = 0; threadgroup float held[64];",
    "a number in braces": "threadgroup int n{0}; threadgroup float held[64];",
    "a number in parentheses": "threadgroup int n(0); threadgroup float held[64];",
    "what the compiler makes out": "threadgroup auto n = 0; threadgroup float held[64];",
    "one of two": "threadgroup float held[64], other = 1.0f;",
    "a struct": "threadgroup Held s = {{0}}; threadgroup float* held = s.numbers;",
    "a constant": "threadgroup const float other = 1.0f; threadgroup float held[64];",
    "the word behind the type": "float threadgroup held[64] = {0};",
    "in a loop": "threadgroup float held[64]; for (int k = 0; k < 2; k++) { threadgroup int n = k; held[n] = 0; }",
    "over lines": "threadgroup float\n held[64]\n = {\n0};",
}
HELD = "struct Held { float numbers[64]; };\n"


@pytest.mark.parametrize("declared", INITIALISED.values(), ids=list(INITIALISED))
def test_an_initializer_of_threadgroup_memory_is_refused(declared: str) -> None:
    with pytest.raises(CompileError, match=r"kernel\.metal:\d+: a variable in threadgroup memory takes no initializer"):
        ran(declared, HELD)


REFUSED = {
    "a member": ("threadgroup float held[64];", "struct S { threadgroup float x[3]; };\n", "a member of a struct"),
    "an alias": ("Shared held[64];", "typedef threadgroup float Shared;\n", "an alias of a type in threadgroup memory"),
    "a using alias": ("Shared held;", "using Shared = threadgroup float[64];\n", "an alias of a type"),
    "a macro": ("SHARED float held[64];", "#define SHARED threadgroup\n", "an alias of a type"),
    "outside of functions": ("", "threadgroup float held[64];\n", "outside of functions"),
    "a variable outside of functions": ("threadgroup float held[64];", "float total = 0.0f;\n", "outside of functions"),
    "an array outside of functions": ("", "float held[64];\n", "outside of functions"),
    "a static array": ("static float held[64];", "", "static"),
}


@pytest.mark.parametrize(("declared", "header", "says"), REFUSED.values(), ids=list(REFUSED))
def test_declarations_outside_threadgroup_memory_are_refused(declared: str, header: str, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        ran(declared, header)


SHARED = {
    "an array": "threadgroup float held[64];",
    "the word behind the type": "float threadgroup held[64];",
    "two in one": "threadgroup float other[3], held[64];",
    "an array of arrays": "threadgroup float rows[8][8]; threadgroup float* held = rows[0];",
    "a template's type": "threadgroup array<float, 8 * 8> held;",
    "a struct": "threadgroup Held s; threadgroup float* held = s.numbers;",
    "an alias of an array": "threadgroup Row held;",
    "aligned": "alignas(64) threadgroup float held[64];",
    "volatile": "volatile threadgroup int n; threadgroup float held[64];",
    "pointers beside it": "threadgroup float of[64]; threadgroup float* held = of; threadgroup float (*p)[64] = &of;",
    "a counter beside it": "threadgroup atomic_uint n; threadgroup float held[(2 + 6) * 8];",
    "behind a comment": "/* threadgroup float held[1] = {0}; */ threadgroup float held[64]; // = {0}",
}


@pytest.mark.parametrize("declared", SHARED.values(), ids=list(SHARED))
def test_threadgroup_memory_is_shared_by_all_lanes(declared: str) -> None:
    result = ran(declared, HELD + "typedef float Row[64];\n")
    assert result.faults == []
    assert np.array_equal(result.outputs[0], X[::-1])


def test_threadgroup_memory_in_a_block_is_shared_by_all_lanes() -> None:
    source = f"if (threadgroups_per_grid.x > 0) {{ {SOURCE} }}".replace("DECLARED", "threadgroup float held[64];")
    text, arguments = text_of("", source=source)
    result = run_orders(text, arguments)
    assert np.array_equal(result.outputs[0], X[::-1])
    assert {fault.kind for fault in result.faults} <= {"front"}


@pytest.mark.skipif(not front.there(), reason="needs clang")
def test_threadgroup_memory_in_a_function_is_found() -> None:
    header = "inline float f(float x) { threadgroup float held[3]; held[0] = x; return held[0]; }\n"
    text, _ = text_of("threadgroup float held[64];", header)
    assert any("kernel function" in line for line in front.complaints(text))


def test_pointers_to_threadgroup_memory_are_not_declarations() -> None:
    header = """
    struct Tile { threadgroup float* rows; const threadgroup float& first; };
    inline threadgroup float* second(threadgroup float* x, threadgroup float row[8]) { return x + 1; }
    template <typename T, typename U = threadgroup float*> inline void g(U p, threadgroup T (&q)[2]) {}
    #define POINTER threadgroup float*
    """
    text, _ = text_of("threadgroup float held[64];", header)
    assert len(declarations(text)) == 1
    assert cpp(text).count("simulator::shared<") == 1


def test_the_command_names_the_line_of_a_refused_declaration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, metal = tmp_path / "script.py", tmp_path / "kernel.metal"
    script.write_text(
        "import mlx.core as mx\n"
        'k = mx.fast.metal_kernel("k", ["x"], ["y"], "threadgroup float a[32] = {0}; uint i = '
        'thread_position_in_grid.x; y[i] = a[i];")\n'
        "k(inputs=[mx.zeros(32)], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)], "
        "output_dtypes=[mx.float32])\n"
    )
    metal.write_text("//: threadgroup float a[32] = {0};\n//: y[thread_position_in_grid.x] = a[0];\n")
    assert main([str(script)]) == 1
    assert "takes no initializer" in capsys.readouterr().err
    assert main([str(metal)]) == 1
    assert "line 1: a variable in threadgroup memory takes no initializer" in capsys.readouterr().out
