"""Merge of an adapter into its model, with the cost measured and kept within a budget.

A quantized layer rounds a small update away when it is quantized again. So the merged model is compared with the
adapted one, and where it differs too much the touched layers get more bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import MacllmError
from macllm.nn import lora, quantize
from macllm.nn.protocol import LanguageModel
from macllm.ops.quantized import using_activations

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

BUDGET = 0.01
"""Largest KL divergence of the merged model from the adapted one, relative to that of the base model."""
_FLOOR = 1e-6  # nats per token; float32 logits differ by less
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
        """Share of the adapter's effect that is lost."""
        return self.kl / self.effect if self.effect > 0 else 0.0

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

    Returns the cost, measured on `rows` (1, L). Adapted layers of a quantized model keep their quantization if the
    cost is within the budget, else they are stored in 8 bits, else unquantized. `dequantize` unpacks the whole model.
    """
    modules = cast(nn.Module, model)
    layers = lora.adapters(modules)
    with using_activations("float"):
        adapted = [_log_probabilities(model, row) for row in rows]
        with lora.Disabled(modules):
            effect, _ = _difference(model, rows, adapted)
        cost = Cost(0.0, effect, 0, 0, len(layers), "stored")
        for precision in _precisions(layers, dequantize or not rows):
            lora.replace(modules, dict(layers))
            lora.fuse(modules, precision=precision)
            kl, changed = _difference(model, rows, adapted)
            cost = Cost(kl, effect, changed, sum(row.size for row in rows), len(layers), precision)
            if cost.within_budget:
                break
    if dequantize:
        quantize.remove(modules)
    return cost


def _precisions(layers: Mapping[str, lora.LoRALinear], dequantize: bool) -> list[lora.Precision]:
    """The precisions to try, in order."""
    if dequantize:
        return ["unquantized"]
    quantized = any(isinstance(layer.linear, quantize.QUANTIZED) for layer in layers.values())
    return ["stored", "8-bit", "unquantized"] if quantized else ["stored"]


def _log_probabilities(model: LanguageModel, tokens: mx.array) -> mx.array:
    """(1, L) -> (L, V) in float32."""
    logits = model(tokens)[0].astype(mx.float32)
    result = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(result)
    return result


def _difference(model: LanguageModel, rows: Sequence[mx.array], wanted: Sequence[mx.array]) -> tuple[float, int]:
    """Mean KL divergence from the log-probabilities `wanted` (L, V), and the number of other maxima."""
    total, changed = 0.0, 0
    for row, want in zip(rows, wanted, strict=True):
        got = _log_probabilities(model, row)
        total += float((mx.exp(want) * (want - got)).sum())
        changed += int((mx.argmax(got, axis=-1) != mx.argmax(want, axis=-1)).sum())
    return total / max(1, sum(row.size for row in rows)), changed
