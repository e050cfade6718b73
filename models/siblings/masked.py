"""The encoder: its data, and what it knows of masked tokens beside models that count."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from macllm_models.maclet.knowledge import Guide
from macllm_models.making import trained
from macllm_models.siblings import tasks, texts

if TYPE_CHECKING:
    from macllm.nn.models import EncoderLM
    from macllm.text.tokenizer import Tokenizer

TOKENIZER = ("--type", "wordpiece", "--vocab-size", "2048", "--lowercase")
RATIO = 0.15  # of the tokens of a text are masked to measure
BATCH = 64  # texts
TOGETHER = 0.1  # of the texts to train in rows of several: in short rows, neighbours are found sooner
EXAMPLES = (
    "what is [MASK]-query attention?",
    "rope rotates queries and [MASK].",
    "lora freezes the weights and trains two small [MASK].",
    "the kv [MASK] keeps the keys and values of earlier tokens.",
    "how do i [MASK] a model on my own data?",
    "the capital of france is [MASK].",
)
TASKS = Path(__file__).parent / "encoder" / "tasks.toml"  # how both tasks are learned


def make(build: Path) -> None:
    """The texts for the masked tokens, and the rows of both tasks."""
    guide = Guide(random.Random(0))
    parts = texts.parts_of(guide)
    tasks.make(build / "tasks", guide, parts)
    texts.make(build, parts, TOGETHER)


@dataclass(frozen=True)
class Masked:
    """A text's tokens (L,), and the places of those that are masked."""

    tokens: np.ndarray
    places: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """The masked tokens."""
        return self.tokens[self.places]


def masked(rows: Sequence[Sequence[int]], special: Sequence[int], seed: int = 0) -> list[Masked]:
    """The rows with `RATIO` of their ordinary tokens chosen, at least one of each row that has any."""
    rng, found = np.random.default_rng(seed), []
    for row in rows:
        tokens = np.array(row)
        ordinary = np.flatnonzero(~np.isin(tokens, special))
        if len(ordinary):
            places = rng.choice(ordinary, max(1, round(RATIO * len(ordinary))), replace=False)
            found.append(Masked(tokens, np.sort(places)))
    return found


class Counts:
    """Probabilities of a token from its neighbours, counted in texts: Witten and Bell's smoothing.

    `special` tokens are neighbours, but never masked.
    """

    def __init__(self, rows: Sequence[Sequence[int]], vocab_size: int, special: Sequence[int] = ()) -> None:
        pairs = np.zeros((vocab_size, vocab_size))
        single = np.ones(vocab_size)
        for row in rows:
            tokens = np.array(row)
            np.add.at(single, tokens, 1)
            np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
        self._ordinary = ~np.isin(np.arange(vocab_size), special)
        self._any = single / single.sum()
        self.unigram = self._any * self._ordinary / self._any[self._ordinary].sum()
        seen, kinds = pairs.sum(axis=1, keepdims=True), (pairs > 0).sum(axis=1, keepdims=True)
        self._next = (pairs + np.maximum(kinds, 1) * self._any) / (seen + np.maximum(kinds, 1))

    def between(self, row: Masked) -> np.ndarray:
        """p(token | left, right) of each masked place, (N, V): p(token | left) p(right | token), normalized.

        A neighbour that is masked itself says nothing.
        """
        hidden, rows = set(row.places.tolist()), []
        for place in row.places.tolist():
            left, right = place - 1, place + 1
            scores = self.unigram if left < 0 or left in hidden else self._next[row.tokens[left]]
            if right < len(row.tokens) and right not in hidden:
                scores = scores * self._next[:, row.tokens[right]]
            scores = scores * self._ordinary
            rows.append(scores / scores.sum())
        return np.stack(rows)


def probabilities(model: EncoderLM, rows: Sequence[Masked], mask: int) -> list[np.ndarray]:
    """The model's probabilities of each masked place, (N, V) of each row."""
    import mlx.core as mx

    order = sorted(range(len(rows)), key=lambda at: len(rows[at].tokens))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        lengths = [len(rows[at].tokens) for at in chosen]
        inputs = np.zeros((len(chosen), max(lengths)), dtype=np.int32)
        for line, at in zip(inputs, chosen, strict=True):
            line[: len(rows[at].tokens)] = rows[at].tokens
            line[rows[at].places] = mask
        hidden = model.hidden(mx.array(inputs), lengths=mx.array(lengths))
        for line, at in enumerate(chosen):
            logits = model.logits(hidden[line, mx.array(rows[at].places)])
            found[at] = np.array(mx.softmax(logits.astype(mx.float32), axis=-1))
    return [found[at] for at in range(len(rows))]


def scores(found: Iterator[np.ndarray], rows: Sequence[Masked]) -> dict[str, float]:
    """Loss in nats, shares of masked tokens that were the likeliest and among five, and their number."""
    loss = first = five = count = 0.0
    for probability, row in zip(found, rows, strict=True):
        right = probability[np.arange(len(row.targets)), row.targets]
        rank = (probability > right[:, None]).sum(axis=1)
        loss -= float(np.log(np.maximum(right, 1e-12)).sum())
        first, five, count = first + int((rank == 0).sum()), five + int((rank < 5).sum()), count + len(rank)
    return {"loss": loss / count, "accuracy": first / count, "five": five / count, "tokens": count}


def encoded(path: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each row's text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [tokenizer.encode(json.loads(line)["text"]) for line in lines]


def compared(model: EncoderLM, tokenizer: Tokenizer, build: Path) -> dict[str, dict[str, float]]:
    """Scores on the masked tokens of the held-out texts: of frequencies, of neighbours, and of the model."""
    special = sorted(tokenizer.special_ids)
    counts = Counts(encoded(build / "train.jsonl", tokenizer), tokenizer.vocab_size, special)
    rows = masked(encoded(build / "valid.jsonl", tokenizer), special)
    guessed = probabilities(model, rows, tokenizer.mask_token_id)
    return {
        "frequencies (unigram)": scores((np.tile(counts.unigram, (len(row.places), 1)) for row in rows), rows),
        "both neighbours (bigram)": scores((counts.between(row) for row in rows), rows),
        "**maclet-encoder**": scores(iter(guessed), rows),
    }


def filled(model: EncoderLM, tokenizer: Tokenizer, text: str, count: int = 5) -> list[tuple[str, float]]:
    """The likeliest tokens in place of [MASK], with their probabilities."""
    tokens = np.array(tokenizer.encode(text))
    row = Masked(tokens, np.flatnonzero(tokens == tokenizer.mask_token_id))
    (found,) = probabilities(model, [row], tokenizer.mask_token_id)
    best = np.argsort(-found[0])[:count]
    return [(tokenizer.decode([int(token)]), float(found[0][token])) for token in best]


def measure(folder: Path, build: Path) -> str:
    """The tables of the card: masked tokens, examples, and both tasks."""
    import macllm

    model, tokenizer = macllm.load(folder)
    found = compared(model, tokenizer, build)
    count = int(next(iter(found.values()))["tokens"])
    lines = [
        f"{count:,} tokens of the held-out texts, {RATIO:.0%} of each, all replaced by [MASK]:",
        "",
        "| | loss, nats | right | among five |",
        "|---|---|---|---|",
    ]
    for name, each in found.items():
        lines.append(f"| {name} | {each['loss']:.3f} | {each['accuracy']:.1%} | {each['five']:.1%} |")
    lines += ["", "| text | likeliest, with probabilities |", "|---|---|"]
    for text in EXAMPLES:
        guesses = ", ".join(f"{word} {share:.2f}" for word, share in filled(model, tokenizer, text))
        lines.append(f"| {text} | {guesses} |")
    return "\n".join([*lines, "", *_tasks(folder, build)])


def _tasks(folder: Path, build: Path) -> list[str]:
    """The table of both tasks, each learned from this encoder and from random weights."""
    models = {"random": _random(folder, build / "tasks" / "random"), "pretrained": folder}
    lines = ["| task | held out | baseline | random weights | **maclet-encoder** |", "|---|---|---|---|---|"]
    for objective, name, metric in (("classify", "subject of a question", "accuracy"), ("tag", "terms", "f1")):
        rows = build / "tasks" / objective
        shares = [_learned(objective, model, rows / kind) for kind, model in models.items()]
        values = [f"{share[metric]:.1%}" for share in shares]
        count, baseline = tasks.baseline(rows, objective)
        lines.append(f"| {name} ({metric}) | {count:,} | {baseline:.1%} | {values[0]} | **{values[1]}** |")
    return lines


def _learned(objective: str, model: Path, run: Path) -> dict[str, Any]:
    """The metrics on held-out rows after full fine-tuning."""
    settings = [f"objective={objective}", f"model={model}", f"data={run.parent}", f"adapter_path={run}"]
    trained("finetune", TASKS, run, settings)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == "Evaluated"][-1]["metrics"]


def _random(folder: Path, out: Path) -> Path:
    """A model of the same shape with random weights, in the folder `out`."""
    import mlx.core as mx

    import macllm
    from macllm import checkpoint
    from macllm.train.initial import initialize

    model, tokenizer = macllm.load(folder, dtype=mx.float32)
    initialize(model, model.info.config["initializer_range"], seed=1)
    checkpoint.save(model, tokenizer, out)
    return out
