"""One decoding step of a model, by mlx-lm and by macllm, as a function of lazy arrays.

The models have the shapes of real checkpoints, weights of 4 bits in groups of 64 as mlx-lm converts them, and a cache
that is filled up to the new token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from dispatches import Dispatch, dispatches
from mlx.utils import tree_flatten, tree_unflatten
from primitives import trace

from macllm import families
from macllm.families.config import Config
from macllm.generation.request import SamplingParams
from macllm.generation.sampling.sampler import Sampler
from macllm.nn import quantize
from macllm.nn.models import build
from macllm.nn.state.buffer import Buffer
from macllm.ops import dispatch

BITS, GROUP, ROOM = 4, 64, 256
DTYPE = mx.bfloat16

_QWEN3: dict[str, Any] = {
    "num_attention_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 151936,
    "max_position_embeddings": 40960, "hidden_act": "silu",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "Qwen3-4B": _QWEN3 | {
        "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728,
        "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "Qwen3-30B-A3B": _QWEN3 | {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "intermediate_size": 6144,
        "num_key_value_heads": 4, "tie_word_embeddings": False, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
}  # fmt: skip
"""The relevant part of the models' config.json."""


@dataclass(frozen=True)
class Step:
    """`run(token, cache)` returns all results of a step: the next token and the new cache."""

    config: dict[str, Any]
    context: int  # with the new token
    bits: int | None
    model: nn.Module
    run: Callable[[mx.array, list[mx.array]], list[mx.array]]

    @property
    def weights(self) -> dict[str, mx.array]:
        """Shapes and types of the model's weights: zeros, never computed."""
        flat = tree_flatten(self.model.parameters())
        return {name: mx.zeros(array.shape, array.dtype) for name, array in flat}

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights that a token reads: only the chosen experts, and one row of an untied embedding."""
        total = 0
        for name, array in self.weights.items():
            share = 1.0
            if array.ndim == 3:
                share = self.config["num_experts_per_tok"] / self.config["num_experts"]
            elif "embed" in name and not self.config["tie_word_embeddings"]:
                share = 1 / array.shape[0]
            total += round(array.nbytes * share)
        return total

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of all tokens in all layers."""
        token = sum(math.prod(shape) // shape[2] * dtype.size for shape, dtype in parts(self.config, 1, self.bits))
        return 2 * token * self.context * self.config["num_hidden_layers"]

    def dispatches(self) -> list[Dispatch]:
        """The Metal dispatches of the step."""
        # Small tables of a model are computed before the first step.
        mx.eval([value for _, module in self.model.named_modules() for value in _own_tables(module)])
        names, layers = list(self.weights), self.config["num_hidden_layers"]
        cache = [mx.zeros(*one) for _ in range(2 * layers) for one in parts(self.config, self.context, self.bits)]

        def function(token: mx.array, *arrays: mx.array) -> list[mx.array]:
            self.model.update(tree_unflatten(list(zip(names, arrays, strict=False))))
            return self.run(token, list(arrays[len(names) :]))

        graph = trace(function, mx.zeros((1, 1), mx.int32), *self.weights.values(), *cache)
        return dispatches(graph, {array.name for array in graph.inputs[1 + len(names) :]})


def parts(config: dict[str, Any], context: int, bits: int | None) -> Iterator[tuple[tuple[int, ...], mx.Dtype]]:
    """Shapes and types of a layer's keys or values, with spare capacity beyond `context` tokens."""
    heads, dim = config["num_key_value_heads"], config["head_dim"]
    rows = (1, heads, -(-context // ROOM) * ROOM)
    if bits is None:
        yield (*rows, dim), DTYPE
    else:
        yield (*rows, dim * bits // 32), mx.uint32
        yield (*rows, dim // GROUP), DTYPE
        yield (*rows, dim // GROUP), DTYPE


def mlx_lm_step(config: dict[str, Any], context: int, bits: int | None) -> Step:
    """The greedy step of mlx_lm.generate.generate_step: token, log-probabilities, cache."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache
    from mlx_lm.utils import _get_classes

    kind, arguments = _get_classes(config)
    model = kind(arguments.from_dict(config))
    own = getattr(model, "quant_predicate", None)

    def choose(path: str, module: nn.Module) -> bool | dict[str, int]:
        return hasattr(module, "to_quantized") and (own is None or own(path, module))

    model.set_dtype(DTYPE)
    nn.quantize(model, GROUP, BITS, class_predicate=choose)
    each = len(list(parts(config, context, bits)))

    def run(token: mx.array, held: list[mx.array]) -> list[mx.array]:
        left, caches = iter(held), []
        for _ in range(config["num_hidden_layers"]):
            cache: Any = KVCache() if bits is None else QuantizedKVCache(group_size=GROUP, bits=bits)
            keys, values = ([next(left) for _ in range(each)] for _ in range(2))
            cache.keys, cache.values = (keys, values) if bits else (keys[0], values[0])
            cache.offset = context - 1
            caches.append(cache)
        logits = model(token, cache=caches)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        state = [(cache.keys, cache.values) for cache in caches]
        return [mx.argmax(logprobs, axis=-1), logprobs.squeeze(0), *(array for _, array in tree_flatten(state))]

    return Step(config, context, bits, model, run)


def macllm_step(config: dict[str, Any], context: int, bits: int | None) -> Step:
    """The greedy step of macllm.generation.decode with Metal kernels: token, cache."""
    model: Any = build(families.spec(Config(config, ())))
    model.set_dtype(DTYPE)
    quantize.prepare(model, _packed(model), {"bits": BITS, "group_size": GROUP}, _routers(model))
    each = 2 * len(list(parts(config, context, bits)))

    def run(token: mx.array, held: list[mx.array]) -> list[mx.array]:
        left, cache = iter(held), model.make_cache(kv_bits=bits)
        for layer in cache.layers:
            layer.head_dim, layer._buffer = (
                config["head_dim"],
                _filled(tuple(next(left) for _ in range(each)), context - 1),
            )
        cache.advance(context - 1)
        sampler = Sampler(SamplingParams(temperature=0), 0, [], config["vocab_size"])
        with dispatch.using("metal"):
            drawn = sampler(model.logits(model.hidden(token, cache=cache))[0, -1], 1)
        return [drawn, *cache.state]

    return Step(config, context, bits, model, run)


def _filled(arrays: tuple[mx.array, ...], end: int) -> Buffer:
    buffer = Buffer()
    buffer._arrays, buffer.end = arrays, end
    return buffer


def _packed(model: nn.Module) -> set[str]:
    """Names of the scales of a quantized checkpoint, for all layers that can be packed."""
    return {f"{path}.scales" for path, module in model.named_modules() if hasattr(module, "to_quantized")}


def _routers(model: nn.Module) -> dict[str, dict[str, int]]:
    """Recipes of mlx-lm's routers, which have 8 bits."""
    paths = (path for path, _ in model.named_modules() if path.endswith(".router"))
    return {path: {"bits": 8, "group_size": GROUP} for path in paths}


def _own_tables(module: nn.Module) -> Iterator[mx.array]:
    kept = {**vars(module), **{name: value for name, value in module.items() if name.startswith("_")}}
    return (value for value in kept.values() if isinstance(value, mx.array))
