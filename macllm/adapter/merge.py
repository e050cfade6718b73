"""Merge of an adapter into its model, with the cost measured and kept within a budget.

A quantized layer rounds a small update away when it is quantized again. So the merged model is compared with the
adapted one, and where it differs too much the touched layers get more bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.errors import CheckpointError, MacllmError, UsageError
from macllm.nn import lora, quantize
from macllm.nn.protocol import LanguageModel
from macllm.ops.quantized import using_activations

from .names import Names

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

BUDGET = 0.01
"""Largest KL divergence of the merged model from the adapted one, relative to that of the base model."""
_FLOOR = 1e-6  # nats per token; a rounding of the logits to float32 costs less
_RANDOM_ROWS, _ROW_TOKENS, _SEED = 2, 64, 0

# Ordinary text of several kinds; with a chat template each is a user's message.
PROMPTS = (
    "Who are you, and what can you do for me?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that reverses a list, with a short test.",
    "Translate into French: the train to the coast leaves at nine.",
)


@dataclass(frozen=True)
class Cost:
    """Difference of a merged model from the model with its adapter.

    `kl` and `effect` are the mean KL divergences, in nats per token, of the merged and of the base model from the
    adapted one; `changed` of `tokens` greedy next tokens differ. `layers` were merged, quantized as `precision` says.
    """

    kl: float
    effect: float
    changed: int
    tokens: int
    layers: int
    precision: lora.Precision

    @property
    def share(self) -> float:
        """Share of the adapter's effect that is lost; infinite if there is no effect, but a loss."""
        if self.effect > 0:
            return self.kl / self.effect
        return math.inf if self.kl > _FLOOR else 0.0

    @property
    def within_budget(self) -> bool:
        """True if the loss is at most `BUDGET` of the effect."""
        return self.kl <= max(BUDGET * self.effect, _FLOOR)

    @property
    def budget(self) -> float:
        """Largest share of the effect that may be lost."""
        return BUDGET


def probes(model: LanguageModel, tokenizer: Tokenizer) -> list[mx.array]:
    """Rows of tokens (1, L) to compare models on: `PROMPTS`, and random tokens.

    None for a model that is not causal.
    """
    if model.info.kind != "decoder":
        return []
    vocabulary = model.info.vocab_size or tokenizer.vocab_size
    rows: list[list[int]] = []
    for prompt in PROMPTS:
        try:
            rows.append(tokenizer.encode_chat([{"role": "user", "content": prompt}]))
        except MacllmError:  # no chat template, or one that wants something else
            rows.append(tokenizer.encode(prompt))
    keys = mx.random.split(mx.random.key(_SEED), _RANDOM_ROWS)
    random = [mx.random.randint(0, vocabulary, (1, _ROW_TOKENS), key=key) for key in keys]
    return [mx.array([row[:_ROW_TOKENS]]) for row in rows if row and max(row) < vocabulary] + random


def merge(model: LanguageModel, rows: Sequence[mx.array], dequantize: bool = False) -> Cost:
    """Merge the adapter of `model` into its weights, in place.

    Returns the cost, measured on `rows` (1, L). Adapted layers of a quantized model, with those that share a tensor of
    the checkpoint with them, keep their quantization if the cost is within the budget, else they are stored in 8 bits,
    else unquantized. `dequantize` unpacks the whole model. Raises UsageError for a model without an active adapter,
    CheckpointError for weights that are not finite.
    """
    modules = cast(nn.Module, model)
    layers = lora.changed(modules)
    if not layers:
        raise UsageError("no adapter to merge", cause="none is active", remedy="one with a weight other than 0")
    _check_finite(layers)
    partners = _partners(modules, layers)
    with using_activations("float"):
        adapted = [_logits(model, row) for row in rows]
        with lora.Disabled(modules):
            effect, _ = _difference(model, rows, adapted)
        cost = Cost(0.0, effect, 0, 0, len(layers), "stored")
        for precision in _precisions(layers, dequantize or not rows):
            lora.replace(modules, layers if precision == "stored" else layers | partners)
            lora.fuse(modules, precision=precision)
            kl, changed = _difference(model, rows, adapted)
            cost = Cost(kl, effect, changed, sum(row.size for row in rows), len(layers), precision)
            if cost.within_budget:
                break
    if dequantize:
        quantize.remove(modules)
    return cost


def _precisions(layers: Mapping[str, nn.Module], dequantize: bool) -> list[lora.Precision]:
    """The precisions to try, in order."""
    if dequantize:
        return ["unquantized"]
    quantized = any(isinstance(lora.base_of(layer), quantize.QUANTIZED) for layer in layers.values())
    return ["stored", "8-bit", "unquantized"] if quantized else ["stored"]


def _check_finite(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if not isinstance(layer, lora.LoRALinear):
            if not all(_is_finite(array) for array in lora.whole_weights(layer).tensors.values()):
                raise CheckpointError(f"the adapter's weights of {name} are not finite", remedy="train it again")
            continue
        weight = lora.unpacked_weight(layer.linear)
        if _is_finite(layer.merged().astype(weight.dtype)):
            continue
        if not _is_finite(weight):
            cause = "the base's are not"
        elif all(_is_finite(array) for array in layer.update_weights if isinstance(array, mx.array)):
            cause = f"the sum is too large for {weight.dtype}"
        else:
            cause = "the adapter's are not"
        raise CheckpointError(f"merged weights of {name} would not be finite", cause=cause, remedy="train it again")


def _is_finite(array: mx.array) -> bool:
    return bool(mx.isfinite(array).all())


def _partners(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, lora.LoRALinear]:
    """Quantized layers that share a tensor of the checkpoint with an adapted one, with an update of zeros."""
    names, modules = Names.of(model), dict(model.named_modules())
    shared = {ours for name in layers for theirs in names.theirs(name) for ours in names.ours(theirs)}
    found = {name: modules.get(name) for name in sorted(shared - layers.keys())}
    return {
        name: lora.layer_type(linear).initial(linear, 1, 0.0, 0.0, mx.random.key(0))
        for name, linear in found.items()
        if isinstance(linear, quantize.QUANTIZED)
    }


def _logits(model: LanguageModel, tokens: mx.array) -> mx.array:
    """(1, L) -> (L, V) in float32."""
    result = model(tokens)[0].astype(mx.float32)
    mx.eval(result)
    return result


def _log_probabilities(logits: mx.array) -> np.ndarray:
    """(L, V) -> (L, V) in float64: a divergence of distributions that are rounded may be negative."""
    exact = np.array(logits, np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


def _difference(model: LanguageModel, rows: Sequence[mx.array], adapted: Sequence[mx.array]) -> tuple[float, int]:
    """Mean KL divergence from the model with the logits `adapted` (L, V), and the number of other maxima."""
    total, changed = 0.0, 0
    for row, logits in zip(rows, adapted, strict=True):
        want, got = _log_probabilities(logits), _log_probabilities(_logits(model, row))
        total += float((np.exp(want) * (want - got)).sum())
        changed += int((got.argmax(axis=-1) != want.argmax(axis=-1)).sum())
    return total / max(1, sum(row.size for row in rows)), changed
