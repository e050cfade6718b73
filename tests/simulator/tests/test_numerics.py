"""macllm's kernels pass under other floating-point rules (flush to zero, FMA, looser ulp). Slow.

GPUs may fuse products with sums, take the smallest numbers for 0, and be a few units off in functions like exp.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.ops.metal import test_flash as flash
from tests.ops.metal import test_kv_decode as decode
from tests.ops.metal import test_linear_attention as linear
from tests.ops.metal import test_qkv_post as heads
from tests.ops.metal import test_qmv as qmv
from tests.ops.metal import test_sample as sample
from tests.simulator import intercept
from tests.simulator import run as simulator
from tests.simulator.run import Result, RunOptions, default_options, run_orders, run_text
from tests.simulator.text import captured

RULES = flash.plan.FlashParams(0.2, True, mx.array([3, 9]), softcap=3.0)
SIZE = flash.Size(2, 2, 1, 20, 37)
KERNELS: dict[str, Callable[[], Any]] = {
    "kv_decode": lambda: decode.test_decode_over_dense_keys_equals_the_definition((1, 8, 2, 5), 300, 40, mx.float16),
    "kv_decode_packed": lambda: decode.test_decode_over_packed_keys_equals_the_definition(
        (2, 3, 1, 4), 21, 40, 4, 8, 128, mx.float32
    ),
    "qkv_post": lambda: heads.test_heads_equal_the_definition(
        (2, 3), (2, 1), heads.made(80, 16, magnitude=1.25), [3, -2], mx.float32
    ),
    "qkv_post_packed": lambda: heads.test_packed_keys_and_values_equal_mlxs(40, 4, 32, mx.bfloat16),
    "qkv_post_vjp": lambda: heads.test_gradients_equal_the_references((2, 3), (2, 1), heads.made(40, 20), [5]),
    "qmv": lambda: qmv.test_epilogues_equal_the_definition(qmv.EXTRAS["GeGLU of the norm"], 3),
    "lora_down": lambda: qmv.test_epilogues_equal_the_definition(qmv.EXTRAS["all of it"], 1),
    "moe": lambda: qmv.test_experts_equal_the_definition(3, 3, 96, 8, mx.float16),
    "sample": lambda: sample.test_each_uniform_number_draws_the_token_at_its_mass(
        sample.Filters(0.9, 40, 0.8, 0.02), 77
    ),
    "flash": lambda: flash.forward_is_right(SIZE, RULES),
    "flash_backward": lambda: flash.gradients_are_right(SIZE, RULES),
    "linear_attention": lambda: linear.compared((1, 1, 70, 16, 24), True, mx.float32, mx.float32),
    "linear_decode": lambda: linear.compared((1, 1, 1, 16, 24), True, mx.float32, mx.float32),
}
FLUSHED = RunOptions(flushed=True)
OF_X86 = ("-mfma",) if platform.machine() == "x86_64" else ()
FUSED = RunOptions(flags=("-O1", "-ffp-contract=fast", "-fexpensive-optimizations", *OF_X86))
LOOSE = RunOptions(flags=("-DSIMULATOR_ULP=2",))
MACHINES = {
    "small numbers are 0": FLUSHED,
    "products are fused with sums": FUSED,
    "functions are two units off": LOOSE,
    "sanitized": RunOptions(build="sanitized"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "qmv" else [pytest.mark.slow]) for n in KERNELS])
def test_an_uninstrumented_program_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def both(text: str, arguments: dict[str, Any]) -> Result:
        checked, fast = (run_text(text, arguments, RunOptions(build=build)) for build in ("checked", "fast"))
        compared.append([x.tobytes() for x in checked.outputs] == [x.tobytes() for x in fast.outputs])
        return checked

    for module in (intercept, simulator):
        monkeypatch.setattr(module, "run_orders", both)
    KERNELS[name]()
    assert compared
    assert all(compared)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("how", MACHINES.values(), ids=list(MACHINES))
def test_a_kernel_is_correct_under_other_floating_point_rules(how: RunOptions, name: str) -> None:
    with default_options(how):
        KERNELS[name]()


def small(line: str, x: np.ndarray, how: RunOptions) -> np.ndarray:
    """Outputs of a one-line kernel for `x` with the options `how`."""
    kernel = mx.fast.metal_kernel("small", ["x"], ["y"], f"uint i = thread_position_in_grid.x; y[i] = {line};")
    arguments: dict[str, Any] = {"inputs": [mx.array(x)], "grid": (len(x), 1, 1), "threadgroup": (len(x), 1, 1)}
    arguments |= {"output_shapes": [x.shape], "output_dtypes": [mx.float32]}
    result = run_orders(captured(kernel, arguments), arguments, how)
    assert result.faults == []
    return result.outputs[0]


def test_flushed_dispatches_flush_subnormal_numbers() -> None:
    tiny = np.full(32, 1e-39, np.float32)
    assert small("x[i] * 1.5f", tiny, RunOptions()).all()
    assert not small("x[i] * 1.5f", tiny, FLUSHED).any()


def test_fused_dispatches_use_fma() -> None:
    odd = np.full(32, 1 + 2.0**-12, np.float32)
    line = "x[i] * x[i] - (1.0f + 0.00048828125f)"
    assert not small(line, odd, RunOptions()).any()
    assert (small(line, odd, FUSED) == 2.0**-24).all()


@pytest.mark.parametrize("name", ["precise::exp", "fast::exp2", "precise::rsqrt"])
def test_loose_dispatches_err_by_two_units_at_most(name: str) -> None:
    some = np.linspace(0.1, 3, 256, dtype=np.float32)
    exact, loose = (small(f"{name}(x[i])", some, how).view(np.int32) for how in (RunOptions(), LOOSE))
    assert set(np.unique(loose - exact)) == {-2, -1, 0, 1, 2}
