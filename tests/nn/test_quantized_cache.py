"""Decoding with a quantized cache against a float64 numpy decoder of the same packed rows.

Two computations that differ in the last bit may round a number to different codes, and their logits then differ by a
step of a scale. The numpy decoder therefore reads the codes from the cache, so that only float32's rounding is left.
Other tests check that the codes are those of the rows.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm.nn.spec import Causal
from macllm.nn.state import buffer, key_values
from macllm.nn.state.key_values import KeyValues, QuantizedCodec
from macllm.ops.attention import attention
from tests.families.golden import golden, shared_model

Array = np.ndarray
LENGTH = 40


def unpacked(parts: tuple[mx.array, ...], bits: int, group: int, head_dim: int) -> tuple[Array, Array]:
    """Rows (B, K, S, Dh) of words, scales and biases, and the distance between two codes of each element."""
    words, scales, biases = (np.array(part) for part in parts)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    steps = np.repeat(scales.astype(np.float64), group, axis=-1)
    rows = codes.reshape(*words.shape[:-1], -1) * steps + np.repeat(biases.astype(np.float64), group, axis=-1)
    return rows[..., :head_dim], steps[..., :head_dim]


class Decoder:
    """Llama's layers for one new token a row, from the weights under transformers' names."""

    def __init__(self, name: str, bits: int) -> None:
        stored = golden(name)
        self.c: dict[str, Any] = stored.config
        self.w = {key: np.array(array).astype(np.float64) for key, array in stored.tensors().items()}
        self.bits = bits
        self.head_dim = self.c.get("head_dim") or self.c["hidden_size"] // self.c["num_attention_heads"]

    def __call__(self, tokens: Array, position: int, layers: list[KeyValues]) -> Array:
        """Logits (B, V) after tokens (B,), whose keys and values are in the cache already."""
        x = self.w["model.embed_tokens.weight"][tokens]
        for i, cache in enumerate(layers):
            at = f"model.layers.{i}."
            x = x + self.attention(at + "self_attn.", self.norm(x, at + "input_layernorm"), position, cache)
            y = self.norm(x, at + "post_attention_layernorm")
            gate, up = (self.linear(y, f"{at}mlp.{part}_proj") for part in ("gate", "up"))
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, at + "mlp.down_proj")
        return self.linear(self.norm(x, "model.norm"), "lm_head")

    def attention(self, at: str, x: Array, position: int, cache: KeyValues) -> Array:
        heads, kv_heads = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        q, k, v = (
            self.linear(x, f"{at}{part}_proj").reshape(len(x), n, self.head_dim)
            for part, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = self.rotated(q, position), self.rotated(k, position)
        group = cache.codec.group_size(self.head_dim)  # type: ignore[union-attr]
        held = cache.filled()
        keys, key_steps = unpacked(held[:3], self.bits, group, self.head_dim)
        values, value_steps = unpacked(held[3:], self.bits, group, self.head_dim)
        for row, rows, steps in ((k, keys, key_steps), (v, values, value_steps)):
            assert (np.abs(rows[:, :, -1] - row) <= np.abs(steps[:, :, -1]) * 1.001 + 1e-6).all()
        first = max(position + 1 - (self.c.get("sliding_window") or LENGTH), 0) - cache.start
        keys, values = (np.repeat(rows[:, :, first:], heads // kv_heads, axis=1) for rows in (keys, values))
        scores = np.einsum("bhd,bhsd->bhs", q, keys) / np.sqrt(self.head_dim)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhs,bhsd->bhd", weights / weights.sum(-1, keepdims=True), values)
        return self.linear(mixed.reshape(len(x), -1), at + "o_proj")

    def rotated(self, x: Array, position: int) -> Array:
        half = self.head_dim // 2
        theta = self.c["rope_parameters"]["rope_theta"]
        angle = position / theta ** (np.arange(0, self.head_dim, 2) / self.head_dim)
        a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[name + ".weight"]

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0.0)


@pytest.mark.parametrize("prompt", [1, 11])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_every_token_over_packed_rows_is_exact(
    name: str, bits: int, prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "GROW", 8)
    monkeypatch.setattr(key_values, "SLACK", 3)
    model, decoder = shared_model(name), Decoder(name, bits)
    tokens = np.random.default_rng(bits).integers(3, 90, (2, LENGTH))
    cache = model.make_cache(max_context=LENGTH, kv_bits=bits)
    logits = model(mx.array(tokens[:, :prompt]), cache=cache)[:, -1]
    for position in range(prompt - 1, LENGTH):
        if position >= prompt:
            logits = model(mx.array(tokens[:, position : position + 1]), cache=cache)[:, -1]
        if prompt == 1 or position >= prompt:
            want = decoder(tokens[:, position], position, cache.layers)
            np.testing.assert_allclose(np.array(logits), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("queries", [1, 2, 5, 40])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("head_dim", "softcap"), [(64, None), (96, None), (128, 5.0), (20, None), (256, None)])
def test_attention_over_packed_rows_is_exact(
    head_dim: int, softcap: float | None, bits: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "GROW", 16)
    random = np.random.default_rng(head_dim + queries)
    cache, B, H, K, scale = KeyValues(Causal(), QuantizedCodec(bits)), 2, 6, 2, head_dim**-0.5
    for length in (7, 30, queries):
        rows = [mx.array(random.standard_normal((B, K, length, head_dim)).astype(np.float32)) for _ in range(2)]
        kv, _ = cache.append(*rows)
    q = random.standard_normal((B, H, queries, head_dim)).astype(np.float32)
    got = attention(mx.array(q), kv, scale=scale, mask="causal" if queries > 1 else None, softcap=softcap)
    group, held = QuantizedCodec(bits).group_size(head_dim), cache.filled()
    halves = (held[:3], held[3:])
    keys, values = (np.repeat(unpacked(each, bits, group, head_dim)[0], H // K, axis=1) for each in halves)
    scores = q.astype(np.float64) @ keys.swapaxes(-1, -2) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    slots = cache.length
    scores[:, :, np.arange(slots) > np.arange(slots - queries, slots)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ values
    np.testing.assert_allclose(np.array(got), want, atol=3e-6 * np.abs(want).max() * np.sqrt(slots))
