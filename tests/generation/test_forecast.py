from __future__ import annotations

import mlx.core as mx
import pytest

from macllm.generation.contract import EngineInfo, EngineOptions, MemoryUse
from macllm.generation.engines.worker import Worker
from macllm.generation.forecast import fitting_tokens
from macllm.generation.request import SamplingParams
from macllm.nn.spec import Sliding
from tests.families.golden import golden
from tests.generation.generate_fakes import FakeTokenizer


def info(**kv: int) -> EngineInfo:
    return EngineInfo("model", 32_768, 100, 1000, True, SamplingParams(), **kv)


@pytest.mark.parametrize("kv_bits", [None, 4, 8])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_an_engine_tells_the_bytes_of_a_tokens_keys_and_values(name: str, kv_bits: int | None) -> None:
    model = golden(name).model()
    told = Worker(model, FakeTokenizer(), "model", EngineOptions(kv_bits=kv_bits)).info()  # type: ignore[arg-type]
    cache = model.make_cache(kv_bits=kv_bits)
    model(mx.full((1, 20), 7), cache=cache)
    growth = windows = longest = 0
    for layer, spec in zip(cache.layers, model.spec.decoder.layers, strict=True):
        row = sum(array.nbytes // array.shape[2] for array in layer.arrays())
        window = spec.mixer.mask.window if isinstance(spec.mixer.mask, Sliding) else None
        growth += row if window is None else 0
        windows += row * (window or 0)
        longest = max(longest, window or 0)
    assert (told.kv_bytes_per_token, told.kv_window_bytes, told.kv_window_tokens) == (growth, windows, longest)
    assert bool(windows) == name.startswith("gemma")


def test_the_context_that_fits_is_used_tokens_and_free_memory() -> None:
    memory = MemoryUse(active_bytes=6_000, peak_bytes=0, limit_bytes=10_000)
    assert fitting_tokens(info(kv_bytes_per_token=10), memory) == 400
    assert fitting_tokens(info(kv_bytes_per_token=10), memory, used_tokens=50) == 450


def test_windows_take_their_memory_once() -> None:
    memory = MemoryUse(active_bytes=6_000, peak_bytes=0, limit_bytes=10_000)
    told = info(kv_bytes_per_token=10, kv_window_bytes=1_000, kv_window_tokens=100)
    assert [fitting_tokens(told, memory, used) for used in (0, 50, 100, 300)] == [300, 400, 500, 700]


def test_a_full_memory_fits_no_more_than_is_used_and_an_unknown_cache_has_no_forecast() -> None:
    memory = MemoryUse(active_bytes=11_000, peak_bytes=0, limit_bytes=10_000)
    assert fitting_tokens(info(kv_bytes_per_token=10), memory, used_tokens=7) == 7
    assert fitting_tokens(info(), memory) is None
    assert fitting_tokens(info(kv_bytes_per_token=0), memory) is None
    assert fitting_tokens(info(kv_bytes_per_token=10), MemoryUse(12_000, 0, limit_bytes=0), used_tokens=7) is None
