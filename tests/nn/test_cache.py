"""Decoding with a cache equals the full pass: all families and cache kinds, chunks, trims, files."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macllm.errors import CheckpointError, DoesNotFitError, MacllmError, UsageError
from macllm.generation.cache_file import load_cache, save_cache
from macllm.nn import attention as attention_module
from macllm.nn.spec import Causal, Chunked, Sliding
from macllm.nn.state import buffer, key_values
from macllm.nn.state.cache import Cache
from macllm.nn.state.key_values import DenseCodec, KeyValues, QuantizedCodec
from macllm.ops.kv import Dense
from tests.families.golden import shared_model
from tests.families.oracles import CASES, Case

DECODERS = [case for case in CASES if case.kind == "decoder" and "both-ways" not in case.name]
PAIRS = [case for case in CASES if case.kind == "text-to-text"]
decoder = pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
pair = pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
LENGTH = 29  # past every window and chunk of the cases


def tokens_for(case: Case, rows: int = 2, length: int = LENGTH, seed: int = 0) -> mx.array:
    random = np.random.default_rng(seed)
    return mx.array(random.integers(3, case.options.get("decoder_vocab_size", 90), (rows, length)))


def chunks(length: int, seed: int) -> list[int]:
    """Random cuts, some a single token."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 9))
    return sorted(set(random.integers(1, length, count).tolist()))


def in_chunks(model, tokens: mx.array, cache: Cache, cuts: list[int]) -> np.ndarray:
    parts = mx.split(tokens, cuts, axis=1) if cuts else [tokens]
    return np.concatenate([np.array(model(part, cache=cache)) for part in parts], axis=1)


def close(got: np.ndarray, want: np.ndarray, bound: float = 2e-5) -> None:
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


def rounded(rows: mx.array, bits: int) -> mx.array:
    """Rows after quantization to `bits` and back."""
    width = -(-rows.shape[-1] // 32) * 32
    padded = np.zeros((*rows.shape[:-1], width), np.float32)
    padded[..., : rows.shape[-1]] = np.array(rows)
    group = 64 if rows.shape[-1] % 64 == 0 else 32
    packed = mx.quantize(mx.array(padded), group_size=group, bits=bits)
    return mx.dequantize(*packed, group_size=group, bits=bits)[..., : rows.shape[-1]]


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small buffers, so that short sequences make them move in every way."""
    monkeypatch.setattr(buffer, "GROW", 4)
    monkeypatch.setattr(key_values, "SLACK", 3)


@decoder
@pytest.mark.parametrize("seed", range(3))
def test_any_chunks_equal_the_full_pass(case: Case, seed: int, small_buffers: None) -> None:
    model, tokens = shared_model(case.name), tokens_for(case)
    cache = model.make_cache(max_context=LENGTH)
    close(in_chunks(model, tokens, cache, chunks(LENGTH, seed)), np.array(model(tokens)))
    assert cache.length == LENGTH


@decoder
def test_one_token_at_a_time_equals_the_full_pass(case: Case) -> None:
    model, tokens = shared_model(case.name), tokens_for(case, rows=1)
    got = in_chunks(model, tokens, model.make_cache(max_context=LENGTH), list(range(1, LENGTH)))
    close(got, np.array(model(tokens)))


@decoder
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_cache_equals_the_full_pass_over_quantized_keys(
    case: Case, bits: int, small_buffers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = shared_model(case.name), tokens_for(case)
    cache = model.make_cache(max_context=LENGTH, kv_bits=bits)
    got = in_chunks(model, tokens, cache, chunks(LENGTH, bits))

    monkeypatch.setattr(attention_module, "Dense", lambda k, v: Dense(rounded(k, bits), rounded(v, bits)))
    # A value between two codes may round to either in another order of sums.
    close(got, np.array(model(tokens)), 0.02 if bits == 8 else 0.2)
    exact = np.abs(got - np.array(model(tokens))).mean()
    assert exact <= 2e-3 * np.abs(got).max()


@decoder
def test_a_left_padded_row_gives_the_logits_of_the_row_alone(case: Case, small_buffers: None) -> None:
    model, padding = shared_model(case.name), [0, 7, 3]
    tokens = tokens_for(case, rows=3)
    cache = model.make_cache(max_context=LENGTH, left_padding=padding)
    got = in_chunks(model, tokens, cache, chunks(LENGTH, 4))
    for row, n in enumerate(padding):
        alone = model.make_cache(max_context=LENGTH)
        want = np.array(model(tokens[row : row + 1, n:], cache=alone))
        close(got[row, n:], want[0])


@decoder
def test_cutting_a_cache_leaves_no_trace_of_the_tokens(case: Case, small_buffers: None) -> None:
    model, tokens, other = shared_model(case.name), tokens_for(case), tokens_for(case, length=5, seed=9)
    cache = model.make_cache(max_context=LENGTH + 5)
    model(tokens[:, :21], cache=cache)
    model(other, cache=cache)
    taken = min(5, 26 - cache.nearest(21)) if cache.nearest(21) else 0
    cache.cut(26 - taken)
    kept = mx.concatenate([tokens[:, :21], other[:, : 5 - taken], tokens[:, 21:]], axis=1)
    got = in_chunks(model, tokens[:, 21:], cache, [3])
    fresh = model.make_cache(max_context=LENGTH + 5)
    close(got, np.array(model(kept, cache=fresh))[:, 26 - taken :])


@decoder
@pytest.mark.parametrize("bits", [None, 8])
def test_a_saved_cache_continues_after_loading(case: Case, bits: int | None, tmp_path: Path) -> None:
    model, tokens = shared_model(case.name), tokens_for(case)
    cache = model.make_cache(max_context=LENGTH, kv_bits=bits)
    model(tokens[:, :19], cache=cache)
    save_cache(model, cache, tmp_path / "a.safetensors", tokens[0, :19].tolist())
    again, remembered = load_cache(shared_model(case.name), tmp_path / "a.safetensors")
    assert remembered == tokens[0, :19].tolist()
    want = in_chunks(model, tokens[:, 19:], cache, [1, 4])
    close(in_chunks(model, tokens[:, 19:], again, [1, 4]), want)


@pair
@pytest.mark.parametrize("bits", [None, 8])
def test_cross_attention_is_computed_once_and_equals_the_full_pass(
    case: Case, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = shared_model(case.name), tokens_for(case, rows=3, length=13)
    source, lengths = tokens_for(case, rows=3, length=17, seed=2) % 80, mx.array([17, 1, 9])
    cache = model.start(source, lengths, kv_bits=bits)
    encoder = model.encoder
    model.encoder = None  # a second call fails
    got = in_chunks(model, targets, cache, [1, 2, 7])
    model.encoder = encoder
    cache.cut(9)
    again = np.array(model(targets[:, 9:], cache=cache))

    def remembered(k: mx.array, v: mx.array) -> Dense:
        # The decoder's rows are quantized, those of the source are not.
        own = bits is not None and k.shape[2] == targets.shape[1]
        return Dense(rounded(k, bits), rounded(v, bits)) if own else Dense(k, v)

    monkeypatch.setattr(attention_module, "Dense", remembered)
    want = np.array(model(targets, source=source, source_lengths=lengths))
    close(got, want, 2e-5 if bits is None else 0.02)
    close(again, want[:, 9:], 2e-5 if bits is None else 0.02)


@pair
def test_a_saved_cache_of_an_encoder_decoder_continues_after_loading(case: Case, tmp_path: Path) -> None:
    model, targets = shared_model(case.name), tokens_for(case, rows=2, length=9)
    source, lengths = tokens_for(case, rows=2, length=7, seed=2) % 80, mx.array([7, 4])
    cache = model.start(source, lengths)
    model(targets[:, :5], cache=cache)
    save_cache(model, cache, tmp_path / "a.safetensors")
    again, _ = load_cache(model, tmp_path / "a.safetensors")
    close(np.array(model(targets[:, 5:], cache=again)), np.array(model(targets[:, 5:], cache=cache)))


def test_a_window_drops_old_keys_and_shrinks_the_buffer_of_a_long_prompt() -> None:
    layer = KeyValues(Sliding(8), DenseCodec())
    rows = mx.zeros((1, 2, 3000, 4))
    layer.append(rows, rows)
    layer.append(rows[:, :, :1], rows[:, :, :1])
    assert layer.nbytes <= 2 * 2 * 4 * 4 * (8 + key_values.SLACK + 2 * buffer.GROW)


@pytest.mark.parametrize("mask", [Causal(), Sliding(5), Chunked(6)])
def test_the_view_of_a_cache_holds_the_rows_that_were_appended(mask, small_buffers: None) -> None:
    layer, random = KeyValues(mask, DenseCodec()), np.random.default_rng(0)
    rows = random.standard_normal((2, 3, 60, 4)).astype(np.float32)
    at = 0
    for n in [1, 7, 1, 1, 12, 3, 1, 1, 1, 20]:
        new = mx.array(rows[:, :, at : at + n])
        kv, start = layer.append(new, -new)
        at += n
        np.testing.assert_array_equal(np.array(kv.keys), rows[:, :, start:at])
        np.testing.assert_array_equal(np.array(kv.values), -rows[:, :, start:at])


def test_quantized_rows_equal_numpys() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 2, 3, 64)).astype(np.float32)
    codec = QuantizedCodec(8)
    view = codec.view(codec.encode(mx.array(rows)), codec.encode(mx.array(rows)), 64).dense(mx.float32)
    step = (rows.astype(np.float64).max(-1) - rows.min(-1))[..., None] / 255
    assert np.abs(np.array(view.keys) - rows).max() <= 0.51 * step.max()


def test_a_window_cannot_go_back_to_dropped_keys() -> None:
    model, tokens = shared_model("mistral"), tokens_for(CASES[0], length=1000) % 90
    cache = model.make_cache()
    model(tokens, cache=cache)
    model(tokens[:, :1], cache=cache)
    with pytest.raises(MacllmError, match="cannot go back to 101 of this cache's 1001 tokens, only to 0"):
        cache.cut(101)
    assert cache.length == 1001


@decoder
def test_a_cache_cut_to_length_0_equals_a_new_one(case: Case, small_buffers: None) -> None:
    model, tokens = shared_model(case.name), tokens_for(case)
    cache = model.make_cache(max_context=LENGTH)
    model(tokens_for(case, seed=3), cache=cache)
    assert cache.nearest(0) == 0
    cache.cut(0)
    assert (cache.length, cache.nbytes) == (0, 0)
    close(in_chunks(model, tokens, cache, [7, 8, 9, 20]), np.array(model(tokens)))


@decoder
@pytest.mark.parametrize("bits", [None, 8])
def test_a_fork_and_its_origin_are_independent(case: Case, bits: int | None, small_buffers: None) -> None:
    model, tokens, other = shared_model(case.name), tokens_for(case), tokens_for(case, seed=5)
    cache = model.make_cache(max_context=LENGTH, kv_bits=bits)
    in_chunks(model, tokens[:, :14], cache, [10, 13])
    fork = cache.fork()
    got = {"origin": [], "fork": []}
    for t in range(14, LENGTH):  # by turns, token by token, into the shared arrays
        got["origin"].append(np.array(model(tokens[:, t : t + 1], cache=cache)))
        got["fork"].append(np.array(model(other[:, t : t + 1], cache=fork)))
    for name, rest in (("origin", tokens), ("fork", other)):
        alone = model.make_cache(max_context=LENGTH, kv_bits=bits)
        whole = mx.concatenate([tokens[:, :14], rest[:, 14:]], axis=1)
        want = in_chunks(model, whole, alone, [10, 13, *range(14, LENGTH)])[:, 14:]
        close(np.concatenate(got[name], axis=1), want)


@pytest.mark.parametrize("copy", [Cache.fork, deepcopy])
@pytest.mark.parametrize("chunk", [1, 3])
def test_copies_of_copies_are_independent_whatever_the_chunks(copy: Callable[[Cache], Cache], chunk: int) -> None:
    model, tokens = shared_model("llama"), tokens_for(CASES[0], length=32)
    caches = [model.make_cache()]
    texts = [tokens[:, :9]]
    model(tokens[:, :9], cache=caches[0])
    caches.append(copy(caches[0]))
    caches.append(copy(caches[1]))
    texts += texts * 2
    for n in range(6):
        for which in (0, 2, 1):
            at = 9 + (3 * n + 7 * which) % 20
            new = tokens[:, at : at + chunk]
            texts[which] = mx.concatenate([texts[which], new], axis=1)
            got = np.array(model(new, cache=caches[which]))
            close(got, np.array(model(texts[which]))[:, -chunk:])


def restored(cache: Cache) -> Cache:
    copy = shared_model("llama").make_cache()
    copy.restore([layer.filled() for layer in cache.layers], cache.length, [layer.head_dim for layer in cache.layers])
    return copy


@pytest.mark.parametrize("copy", [Cache.fork, deepcopy, restored])
@pytest.mark.parametrize("which", ["origin", "copy"])
def test_when_a_cache_goes_back_its_copy_and_its_views_keep_their_rows(
    copy: Callable[[Cache], Cache], which: str
) -> None:
    model, tokens = shared_model("llama"), tokens_for(CASES[0])
    cache = model.make_cache()
    in_chunks(model, tokens[:, :9], cache, [5, 6, 7, 8])
    held = [array for layer in cache.layers for array in layer.filled()]
    mx.eval(held)
    before = [np.array(array) for array in held]
    goes_back, stays = (cache, copy(cache)) if which == "origin" else (copy(cache), cache)
    goes_back.cut(5)
    in_chunks(model, tokens[:, 20:26], goes_back, [1, 2, 3])
    close(np.array(model(tokens[:, 9:12], cache=stays)), np.array(model(tokens[:, :12]))[:, 9:])
    for array, was in zip(held, before, strict=True):
        np.testing.assert_array_equal(np.array(array), was)


@pytest.mark.parametrize("length", [2, 255, 256, 300])
def test_the_first_step_after_a_prompt_writes_into_the_prompts_buffer(length: int) -> None:
    model = shared_model("llama")
    tokens = tokens_for(CASES[0], length=length) % 90
    cache = model.make_cache()
    mx.eval(model(tokens, cache=cache), cache.state)
    reserved, held = cache.nbytes, [array for layer in cache.layers for array in layer.filled()]
    mx.eval(held)
    mx.reset_peak_memory()
    active = mx.get_active_memory()
    mx.eval(model(tokens[:, :1], cache=cache))
    assert cache.nbytes == reserved
    assert mx.get_peak_memory() - active < reserved // len(cache.layers)


def test_after_going_back_only_the_first_step_moves_the_buffer() -> None:
    model = shared_model("llama")
    tokens = tokens_for(CASES[0], length=300) % 90
    cache = model.make_cache()
    mx.eval(model(tokens, cache=cache), cache.state)
    cache.cut(200)
    mx.eval(model(tokens[:, :1], cache=cache))
    mx.reset_peak_memory()
    active = mx.get_active_memory()
    mx.eval(model(tokens[:, :1], cache=cache))
    assert mx.get_peak_memory() - active < cache.nbytes // len(cache.layers)


def test_more_tokens_than_max_context_raise_an_error_with_both_numbers() -> None:
    model = shared_model("llama")
    with pytest.raises(DoesNotFitError, match="9 tokens do not fit into the 8"):
        model(mx.zeros((1, 9), mx.int32), cache=model.make_cache(max_context=8))


def test_unsupported_cache_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="kv_bits is 3"):
        shared_model("llama").make_cache(kv_bits=3)


def test_a_bidirectional_model_refuses_a_cache() -> None:
    with pytest.raises(UsageError, match="bidirectional model cannot use a cache"):
        shared_model("gemma3_text-both-ways").make_cache()


def test_a_file_that_is_no_cache_of_this_model_is_refused(tmp_path: Path) -> None:
    model = shared_model("llama")
    cache = model.make_cache()
    model(mx.array([[4, 5, 6]]), cache=cache)
    path = tmp_path / "a.safetensors"
    save_cache(model, cache, path)
    with pytest.raises(UsageError, match="another model"):
        load_cache(shared_model("qwen2"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(CheckpointError):
        load_cache(model, path)
