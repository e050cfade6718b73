"""MLX's own kernels compile in the simulator, and match numpy where they are run.

Slow: all that is understood.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.simulator.brackets import without_comments
from tests.simulator.compile import understood
from tests.simulator.run import Result, RunOptions, run_text
from tests.simulator.text import translated

INCLUDE = Path(mx.__file__).parent / "include"
KERNELS = INCLUDE / "mlx/backend/metal/kernels"
OURS = {"utils.h", "bf16.h", "bf16_math.h", "complex.h", "logging.h"}
"""Headers that MLX puts before every kernel; mlx_text.h replaces them."""


def text_of(*names: str) -> str:
    """Headers and their includes, each once."""
    seen: set[Path] = set()

    def inlined(path: Path) -> str:
        if path in seen or (path.parent == KERNELS and path.name in OURS):
            return ""
        seen.add(path)
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            included = re.match(r'#include "(mlx/[^"]+)"', line)
            kept = "" if line.startswith(("#include", "#pragma once")) else line
            lines.append(inlined(INCLUDE / included[1]) if included else kept)
        return "\n".join(lines) + "\n"

    return "".join(inlined(KERNELS / name) for name in ("defines.h", *names))


def ran(names: tuple[str, ...], kernel: str, arguments: dict[str, Any], **constants: Any) -> Result:
    """Run one of a header's kernels, with template arguments."""
    instance = f'template [[host_name("k")]] [[kernel]] decltype({kernel}) {kernel};\n'
    how = RunOptions(constants=tuple((int(name[1:]), value) for name, value in constants.items()))
    result = run_text(text_of(*names) + instance, arguments, how)
    assert result.faults == []
    return result


def asked(inputs: list[Any], output: tuple[int, ...], grid: tuple[int, int, int], group: tuple[int, int, int]) -> Any:
    return {
        "inputs": inputs,
        "grid": grid,
        "threadgroup": group,
        "output_shapes": [output],
        "output_dtypes": [mx.float32],
    }


RANDOM = np.random.default_rng(0)


def test_mlxs_softmax_equals_numpys() -> None:
    x = RANDOM.normal(size=(3, 100)).astype(np.float32)
    arguments = asked([mx.array(x), 100], x.shape, (96, 1, 1), (32, 1, 1))
    got = ran(("softmax.h",), "softmax_single_row<float, float>", arguments).outputs[0]
    weights = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(got, weights / weights.sum(1, keepdims=True), rtol=1e-5)


def test_mlxs_vector_attention_equals_numpys() -> None:
    q, k, v = (RANDOM.normal(size=size).astype(np.float32) for size in ((2, 64), (1, 40, 64), (1, 40, 64)))
    sinks, nothing = np.array([0.5, 2.0], np.float32), mx.zeros(8)
    strides = [np.array(n, np.uint64) for n in (40 * 64, 64, 40 * 64, 64)]
    inputs = [mx.array(q), mx.array(k), mx.array(v), 2, 40, *strides, 0.125]
    inputs += [nothing, nothing, 0, 0, 0, mx.array(sinks), 2]
    arguments = asked(inputs, (2, 64), (2 * 1024, 1, 1), (1024, 1, 1))
    constants = {"c20": False, "c21": False, "c22": False, "c23": False, "c24": False, "c25": True, "c26": 1}
    got = ran(("sdpa_vector.h",), "sdpa_vector<float, 64>", arguments, **constants).outputs[0]
    weights = np.exp(0.125 * q @ k[0].T)
    np.testing.assert_allclose(
        got, weights @ v[0] / (weights.sum(1, keepdims=True) + np.exp(sinks)[:, None]), rtol=2e-5, atol=1e-6
    )


UNDERSTOOD = [
    "arange.h",
    "binary.h",
    "binary_two.h",
    "cexpf.h",
    "copy.h",
    "cross_entropy.h",
    "erf.h",
    "expm1f.h",
    "fft/radix.h",
    "fp4.h",
    "fp8.h",
    "hadamard.h",
    "indexing/gather.h",
    "indexing/gather_axis.h",
    "indexing/gather_front.h",
    "indexing/indexing.h",
    "logsumexp.h",
    "quantized_utils.h",
    "reduction/reduce_init.h",
    "sdpa_vector.h",
    "softmax.h",
    "sort.h",
    "steel/attn/attn.h",
    "steel/attn/kernels/steel_attention.h",
    "steel/attn/loader.h",
    "steel/attn/mma.h",
    "steel/attn/transforms.h",
    "steel/conv/conv.h",
    "steel/gemm/gemm.h",
    "steel/gemm/loader.h",
    "steel/gemm/mma.h",
    "steel/gemm/transforms.h",
    "steel/utils/integral_constant.h",
    "steel/utils/type_traits.h",
    "ternary.h",
    "ternary_ops.h",
    "unary.h",
    "unary_ops.h",
]
"""Headers that g++ compiles. Others specialise members of a struct, or need headers before them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_header_of_mlx_compiles(name: str) -> None:
    understood(translated(without_comments(text_of(name), strings=True)))
