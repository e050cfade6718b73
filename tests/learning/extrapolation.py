"""Losses beyond the training length, with ALiBi and RoPE: `python -m tests.learning.extrapolation`.

Two decoders, equal but for their positions, learn sequences of 24 tokens from a hidden topic that changes now and then,
so that recent tokens tell more than old ones. On held-out sequences of up to 192 tokens (arXiv:2108.12409, figure 4)
the loss of the last 12 tokens stays where it was with ALiBi, and rises with RoPE. The best possible loss is that of the
process's own forward algorithm. The last line is one JSON object.
"""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.nn.models import DecoderLM
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.pretrain import new_model
from macllm.train.render import Example

VOCAB, TOPICS, LENGTH, STAYS = 32, 8, 24, 0.93
LENGTHS = (LENGTH, 48, 96, 192)
LAST = 12
CONFIG: dict[str, Any] = {
    "model_type": "macllm", "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def topics() -> np.ndarray:
    """The probabilities of tokens by topic (TOPICS, VOCAB)."""
    logits = 1.5 * np.random.default_rng(0).normal(size=(TOPICS, VOCAB))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def rows(count: int, length: int, seed: int) -> np.ndarray:
    """Sequences (count, length) of the process."""
    draw, cumulated = np.random.default_rng((seed, length)), topics().cumsum(axis=1)
    tokens = np.zeros((count, length), dtype=np.int32)
    topic = draw.integers(0, TOPICS, count)
    for at in range(length):
        topic = np.where(draw.random(count) < STAYS, topic, draw.integers(0, TOPICS, count))
        tokens[:, at] = np.minimum((cumulated[topic] < draw.random(count)[:, None]).sum(axis=1), VOCAB - 1)
    return tokens


def best(tokens: np.ndarray) -> float:
    """The mean loss of the last tokens by the forward algorithm, in nats."""
    chances, belief, found = topics(), np.full((len(tokens), TOPICS), 1 / TOPICS), list[np.ndarray]()
    for token in tokens.T:
        belief = STAYS * belief + (1 - STAYS) / TOPICS
        joint = belief * chances[:, token].T
        found.append(-np.log(joint.sum(axis=1)))
        belief = joint / joint.sum(axis=1, keepdims=True)
    return float(np.mean(found[-LAST:]))


def trained(kind: str, seed: int, steps: int) -> DecoderLM:
    """A decoder with the positions `kind` after `steps` steps."""

    class Recipe:
        config, init_std = "config.json", 0.1

    Recipe.seed = seed  # type: ignore[attr-defined]
    model = new_model({**CONFIG, "position_kind": kind}, Recipe)  # type: ignore[arg-type]
    mask = np.arange(LENGTH) > 0
    examples = [Example(row, mask, "process") for row in rows(16 * steps, LENGTH, seed)]
    config = TrainConfig(
        data="rows", iters=steps, batch_size=16, learning_rate=3e-3, max_seq_length=LENGTH, seed=seed, steps_per_eval=0
    )
    for _ in Trainer.of(model, CausalLM(), config, Dataset(examples, [], Counts())).run():
        pass
    model.eval()
    return model


def losses(model: DecoderLM, count: int = 256) -> dict[int, float]:
    """The mean loss of the last tokens, in nats, by length."""
    found: dict[int, float] = {}
    for length in LENGTHS:
        tokens = mx.array(rows(count, length, 999))
        logits = model(tokens)[:, -LAST - 1 : -1].astype(mx.float32)
        scores = mx.take_along_axis(logits, tokens[:, -LAST:, None], axis=-1)[..., 0]
        found[length] = (mx.logsumexp(logits, axis=-1) - scores).mean().item()
    return found


def main(steps: int = 500, seeds: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """Train, measure and print; the result of the last line."""
    found = {kind: {seed: losses(trained(kind, seed, steps)) for seed in seeds} for kind in ("alibi", "rope")}
    for kind, by_seed in found.items():
        for seed, by_length in by_seed.items():
            print(kind, seed, {length: round(loss, 3) for length, loss in by_length.items()})
    lowest = {length: best(rows(1024, length, 999)) for length in LENGTHS}
    print("best possible", {length: round(loss, 3) for length, loss in lowest.items()})
    rises = {
        kind: max(each[LENGTHS[-1]] - each[LENGTH] for each in by_seed.values()) for kind, by_seed in found.items()
    }
    learned = {
        "shown": f"loss at {LENGTHS[-1]} tokens less that at {LENGTH}: ALiBi {rises['alibi']:+.3f}, "
        f"RoPE {rises['rope']:+.3f}",
        "held": rises["alibi"] < 0.03 and rises["rope"] > 0.1,
    }
    result = {"objectives": {"ALiBi": learned}, "best_possible": lowest, "losses": found}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
