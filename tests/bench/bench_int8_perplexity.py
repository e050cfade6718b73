"""Perplexity of the bundled model with activations rounded to 8 bits, token by token.

Over maclet's validation rows: the model in 4 and 8 bits, with activations as they are and rounded, a whole row at a
time (the kernel of many rows) and eight tokens at a time over a cache (the kernel of few). Over all tokens, and over
those of answers, which the model was trained on and knows nearly by heart. The change is the mean of the differences of
the same token's loss; its standard error counts a conversation as one draw.
`python tests/bench/bench_int8_perplexity.py [conversations]`.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from timing import machine

from macllm.checkpoint import load
from macllm.nn import quantize
from macllm.ops.cross_entropy import cross_entropy
from macllm.ops.quantized import Activations, using_activations
from macllm.train.render import Example, to_examples
from macllm.train.rows import Chat
from macllm_models.maclet import make_data
from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.topics import normalized

CHUNK = 8  # within the limit of the kernel for few rows
GROUP = 64

Logits = Callable[[Any, mx.array], mx.array]


@dataclass(frozen=True)
class Change:
    """Change of the logarithm of the perplexity."""

    mean: float
    error: float

    @classmethod
    def between(cls, before: list[np.ndarray], after: list[np.ndarray]) -> Change:
        """The change between the losses of each conversation's tokens."""
        pairs = zip(before, after, strict=True)
        sums, counts = np.array([((b - a).sum(), len(a)) for a, b in pairs]).T
        mean = sums.sum() / counts.sum()
        return cls(mean, float(np.sqrt(np.square(sums - mean * counts).sum()) / counts.sum()))

    def __str__(self) -> str:
        return f"{math.expm1(self.mean):+.3%} ± {self.error:.3%}"


def main() -> None:
    """Measure, print a table and a line of JSON."""
    wanted = int(sys.argv[1]) if sys.argv[1:] else make_data.VALIDATION
    model, tokenizer = load()
    rows = list(conversations(wanted, tokenizer))
    chosen = {"all": [np.ones(len(row) - 1, bool) for row in rows], "answers": [row.loss_mask[1:] for row in rows]}
    stored = losses(model, rows, whole, "float")
    for kind, masks in chosen.items():
        known = np.concatenate(picked(stored, masks))
        print(
            f"{kind}: {len(known)} tokens of {wanted} conversations, perplexity {math.exp(known.mean()):.4f} as stored"
        )
    results: dict[str, dict[str, float]] = {}
    for bits in (4, 8):
        model, _ = load()
        quantize.apply(model, bits=bits, group_size=GROUP)
        for name, way in (("whole rows", whole), ("eight tokens", in_chunks)):
            exact, rounded = (losses(model, rows, way, form) for form in ("float", "int8"))
            for kind, masks in chosen.items():
                before, between, after = (picked(each, masks) for each in (stored, exact, rounded))
                weights, change = Change.between(before, between), Change.between(between, after)
                title = f"{bits} bits, {name}, {kind}"
                print(f"{title}: activations rounded {change}   weights in {bits} bits {weights}")
                figures = {"change": math.expm1(change.mean), "error": change.error}
                results[title] = figures | {"weights": math.expm1(weights.mean), "weights_error": weights.error}
    print(json.dumps({"bench": Path(__file__).stem, **machine(), "conversations": wanted, "results": results}))


def conversations(count: int, tokenizer: Any) -> Iterator[Example]:
    """The first validation rows of the recipe."""
    guide = Guide(random.Random(0))
    items = make_data.heldout_items(guide)
    heldout = {normalized(message["content"]) for item in items for message in item["messages"][:1]}
    for line in make_data.rows(guide, count, heldout, set()):
        yield from to_examples(Chat(json.loads(line)["messages"], None, "valid.jsonl"), tokenizer, mask_prompt=True)


def losses(model: Any, rows: list[Example], way: Logits, form: Activations) -> list[np.ndarray]:
    """-log p of every token of each row but the first, float64."""
    with using_activations(form):
        found = (cross_entropy(way(model, mx.array(r.tokens[None, :-1]))[0], mx.array(r.tokens[1:])) for r in rows)
        return [np.array(each).astype(np.float64) for each in found]


def picked(rows: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
    """The losses selected by each row's mask."""
    return [row[mask] for row, mask in zip(rows, masks, strict=True)]


def whole(model: Any, tokens: mx.array) -> mx.array:
    """Logits in one pass."""
    return model(tokens)


def in_chunks(model: Any, tokens: mx.array) -> mx.array:
    """Logits over a cache, a few tokens at a time."""
    cache = model.make_cache()
    parts = [model(tokens[:, at : at + CHUNK], cache=cache) for at in range(0, tokens.shape[1], CHUNK)]
    return mx.concatenate(parts, axis=1)


if __name__ == "__main__":
    main()
