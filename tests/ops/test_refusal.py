"""Kernels that Metal rejects: ops fall back to MLX's operations, which is logged once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from macllm.nn import quantize
from macllm.ops import dispatch, metal, using
from macllm.ops.metal import KernelCall, KernelError, executed_by
from tests.families.golden import golden


@pytest.fixture(autouse=True)
def clear_refusals() -> Iterator[None]:
    yield
    dispatch.refused.clear()


def refuse(call: KernelCall) -> list[mx.array]:
    raise KernelError(f"{call.kernel}: too many threads")


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2"])
@pytest.mark.parametrize("kv_bits", [None, 4])
def test_rejected_kernels_fall_back_to_mlx(name: str, kv_bits: int | None, caplog: pytest.LogCaptureFixture) -> None:
    model = golden(name).model()
    quantize.apply(model, bits=4, group_size=32)
    tokens = mx.array([[5, 6, 7, 8, 9]])

    def decoded() -> np.ndarray:
        cache = model.make_cache(kv_bits=kv_bits)
        return np.concatenate([np.array(model(part, cache=cache)) for part in (tokens[:, :4], tokens[:, 4:])], axis=1)

    with using("stock"):
        want = decoded()
    with caplog.at_level(logging.INFO), executed_by(refuse), using("metal"):
        got, again = decoded(), decoded()
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(again, want)
    assert len(caplog.records) == len(dispatch.refused) > 0
    assert "too many threads" in caplog.text


def fake_metal(failure: Exception | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend a Mac with kernels that return zeros and may fail; returns a log of evaluations."""
    seen: list[str] = []

    def kernel(**options: object) -> object:
        return lambda **arguments: [mx.zeros(arguments["output_shapes"][0])]

    def evaluate(outputs: list[mx.array]) -> None:
        seen.append("evaluated")
        if failure is not None:
            raise failure

    monkeypatch.setattr(mx.fast, "metal_kernel", kernel)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "eval", evaluate)
    monkeypatch.setattr(metal, "_compiled", {})
    monkeypatch.setattr(metal, "_proven", set())
    return seen


def delta(heads: int) -> KernelCall:
    out = mx.zeros((1, heads, 3, 8))
    return metal.KernelCall(
        "flash_backward_delta",
        {"out": out, "dout": out},
        {"delta": ((1, heads, 3), mx.float32)},
        (32, 3 * heads, 1),
        (32, 1, 1),
        {"D": 8},
    )


def test_each_kernel_specialization_is_evaluated_at_its_first_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_metal(None, monkeypatch)
    metal.launch(delta(1))
    metal.launch(delta(2))
    assert seen == ["evaluated"]


def test_metals_message_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_metal(RuntimeError("[metal::Device] Unable to build metal library"), monkeypatch)
    with pytest.raises(KernelError, match=r"flash_backward_delta: .*Unable to build"):
        metal.launch(delta(1))


def test_inside_a_transformation_the_check_is_postponed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="transformations") as caught:
        mx.compile(lambda x: mx.eval(x) or x)(mx.zeros(3))
    seen = fake_metal(caught.value, monkeypatch)
    metal.launch(delta(1))
    metal.launch(delta(1))
    assert seen == ["evaluated"] * 2
