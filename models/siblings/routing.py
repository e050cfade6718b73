"""Losses and answers of maclet-moe beside a dense model, and the load of its experts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.plain import plain
from macllm_models.making import curves, trained

from .chats import answer

HOME = Path(__file__).parent / "moe"
# Settings of the dense model to compare with; the others are those of the recipe.
DENSE = (f"config={HOME / 'dense.json'}", "router_aux_loss_coef=0", "router_z_loss_coef=0")
EXAMPLES = (
    "What is attention?",
    "what is lora",
    "How do I quit the chat?",
    "Who painted the Mona Lisa?",
    "Why does a transformer need positions?",
)
BATCH = 16
HELDOUT = ("heldout_texts", "heldout_chats")
QUESTIONS = 160  # of the plain ones, for the rate of answers that are right in every word


@dataclass(frozen=True)
class Load:
    """Share of the choices that each expert got, by layer: (layers, E), each row adds up to 1."""

    shares: np.ndarray

    @property
    def entropies(self) -> np.ndarray:
        """Entropy of the load of each layer relative to that of equal shares, 0 to 1."""
        logs = np.log(np.maximum(self.shares, 1e-12))
        return -(self.shares * logs).sum(axis=1) / math.log(self.shares.shape[1])


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss(model: Any, tokenizer: Any, found: Sequence[dict[str, Any]]) -> float:
    """Mean -log p of the tokens, in nats: all but the first of a text, the answers of a conversation."""
    from macllm.train.objectives.clm import CausalLM
    from macllm.train.rows.columns import parse

    objective, total, count = CausalLM(), 0.0, 0.0
    made = [one for row in found for one in objective.examples(parse(row, "row"), tokenizer)]
    for at in range(0, len(made), BATCH):
        part = objective.loss(model, objective.collate(made[at : at + BATCH], np.random.default_rng(0)))
        total, count = total + float(part.numerator), count + part.denominator
    return total / count


def load(model: Any, tokenizer: Any, texts: Sequence[str]) -> Load:
    """The experts' shares of the tokens of texts. Raises: ValueError for a model without experts."""
    import mlx.core as mx

    from macllm.nn.routing import collecting

    counts: list[np.ndarray] = []
    for text in texts:
        with collecting() as routed:
            model(mx.array([tokenizer.encode(text)]))
        if not routed:
            raise ValueError("the model has no experts")
        counts = counts or [np.zeros(layer.logits.shape[-1]) for layer in routed]
        for total, layer in zip(counts, routed, strict=True):
            best = np.argsort(-np.array(layer.logits.astype(mx.float32)), axis=-1)[..., : layer.top_k]
            total += np.bincount(best.reshape(-1), minlength=len(total))
    return Load(np.stack([total / total.sum() for total in counts]))


def answered(model: Any, tokenizer: Any, most: int = QUESTIONS) -> tuple[int, int]:
    """Number of plain questions whose greedy answer is the taught one, and number of those asked."""
    import macllm

    guide = Guide(random.Random(0))
    asked = random.Random(1).sample(guide.topics, min(most, len(guide.topics)))
    right = 0
    for topic in asked:
        told = macllm.generate(model, tokenizer, plain(topic, topic.name), max_tokens=120, temperature=0.0)
        right += told.text.strip() == answer(topic)
    return right, len(asked)


def measure(folder: Path, build: Path) -> str:
    """The tables of the card: losses and answers beside a dense model, loads, examples, a curve."""
    import macllm

    places = (f"data={build}", f"tokenizer={build / 'tokenizer'}", f"output={build / 'dense'}")
    dense = trained("train", HOME / "recipe.toml", build / "dense", [*places, *DENSE])
    losses = ["| | texts | answers | plain questions answered as taught |", "|---|---|---|---|"]
    for name, place in (("**maclet-moe**", folder), ("dense", dense)):
        model, tokenizer = macllm.load(place)
        found = [loss(model, tokenizer, rows(build / f"{part}.jsonl")) for part in HELDOUT]
        right, asked = answered(model, tokenizer)
        losses.append(f"| {name} | {found[0]:.3f} | {found[1]:.3f} | {right} of {asked} |")
    loads = ["| layer | tokens of | shares of the experts, in percent | entropy |", "|---|---|---|---|"]
    model, tokenizer = macllm.load(folder)
    for kind, texts in {"texts": _texts(build, HELDOUT[0]), "conversations": _texts(build, HELDOUT[1])}.items():
        loads += _loads(kind, load(model, tokenizer, texts))
    curve = ["The dense model:", "", curves(build / "dense" / "metrics.jsonl")]
    return "\n".join([*losses, "", *loads, "", *_examples(folder), "", *curve, "", "maclet-moe:"])


def _texts(build: Path, part: str) -> list[str]:
    """The held-out texts, or conversations as plain text."""
    found = rows(build / f"{part}.jsonl")
    return [row.get("text") or "\n".join(said["content"] for said in row["messages"]) for row in found]


def _loads(kind: str, found: Load) -> list[str]:
    """A row for each layer."""
    lines = []
    for layer, (shares, entropy) in enumerate(zip(found.shares, found.entropies, strict=True)):
        parts = ", ".join(f"{100 * share:.1f}" for share in shares)
        lines.append(f"| {layer} | {kind} | {parts} | {entropy:.3f} |")
    return lines


def _examples(folder: Path) -> list[str]:
    """Answers, greedily."""
    import macllm

    model, tokenizer = macllm.load(folder)
    lines = ["| question | answer |", "|---|---|"]
    for question in EXAMPLES:
        told = macllm.generate(model, tokenizer, question, max_tokens=80, temperature=0.0).text
        lines.append(f"| {question} | {told.strip()} |")
    return lines
