"""Supervised objectives learn a rule that a program checks: letters in alphabetical order.

A question has five different letters in random order, and the answer is the same letters sorted. The letters of a
held-out question never occur together in training, in any order. An encoder-decoder learns by `seq2seq`, a decoder by
`sft`. Shares are of greedy answers with all tokens right: random orders of the letters are right once in 120.

    python -m tests.learning.sorting
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.nn.models import DecoderLM
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.objectives.seq2seq import TextPair, TextToText
from macllm.train.objectives.texts import Text
from macllm.train.pretrain import new_model
from macllm.train.render import Example
from tests.train.toy import LLAMA

LETTERS, SHOWN, HELD_OUT, COUNT = 14, 5, 200, 400
CHANCE = 1 / math.factorial(SHOWN)
SEEDS, BATCH = (0, 1, 2), 32
STEPS = {"seq2seq": 600, "sft": 600}
_END, _ASK, _FIRST = 1, 2, 3  # the end of a text, the token between question and answer, and the first letter
_T5: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": _FIRST + LETTERS, "d_model": 48,
    "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 3, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip
_SIZES = {"vocab_size": _FIRST + LETTERS, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
CONFIGS = {"seq2seq": _T5, "sft": {**LLAMA, **_SIZES}}


def questions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions of training and held-out ones, (N, SHOWN); no set of letters is in both."""
    random = np.random.default_rng(seed)
    every = random.permutation(list(itertools.combinations(range(LETTERS), SHOWN)))
    parts = (every[HELD_OUT:], STEPS["sft"] * BATCH), (every[:HELD_OUT], COUNT)
    given, asked = (random.permuted(sets[random.integers(0, len(sets), count)], axis=1) for sets, count in parts)
    return given, asked


def _text(letters: np.ndarray) -> Text:
    return Text((_FIRST + letters).astype(np.int32), np.ones(len(letters), bool), (), (_END,), "letters")


def _example(letters: np.ndarray) -> Example:
    row = np.array([*(_FIRST + letters), _ASK, *(_FIRST + np.sort(letters)), _END], np.int32)
    return Example(row, np.arange(len(row)) > SHOWN, "letters")


def trained(objective: str, given: np.ndarray, seed: int, steps: int) -> Any:
    """A model of random weights after `steps` steps on the questions."""
    model = new_model(CONFIGS[objective], SimpleNamespace(config="letters", init_std=0.1, seed=seed))  # type: ignore[arg-type]
    config = TrainConfig(data="letters", iters=steps, batch_size=BATCH, learning_rate=4e-3, seed=seed, steps_per_eval=0)
    rows: Sequence[Any]
    if objective == "sft":
        learned, rows = CausalLM(), [_example(letters) for letters in given]
    else:
        learned, rows = TextToText(), [TextPair(_text(letters), _text(np.sort(letters))) for letters in given]
    for _ in Trainer.of(model, learned, config, Dataset(rows, [], Counts())).run():
        pass
    model.eval()
    return model


def right(objective: str, model: Any, asked: np.ndarray) -> float:
    """The share of greedy answers that are the sorted letters and the end.

    All of an answer's tokens are the most probable after those before it if, and only if, it is the greedy one.
    """
    sources, answers = _FIRST + asked, _FIRST + np.sort(asked, axis=1)
    ends = np.full((len(asked), 1), _END)
    expected = np.concatenate([answers, ends], axis=1)  # (N, SHOWN + 1)
    if isinstance(model, DecoderLM):
        logits = model(mx.array(np.concatenate([sources, np.full_like(ends, _ASK), answers], axis=1)))[:, SHOWN:]
    else:
        inputs = mx.array(np.concatenate([np.zeros_like(ends), answers], axis=1))
        lengths = mx.full((len(asked),), SHOWN + 1)
        logits = model(inputs, source=mx.array(np.concatenate([sources, ends], axis=1)), source_lengths=lengths)
    return float((np.array(mx.argmax(logits, axis=-1)) == expected).all(axis=1).mean())


def measured(objective: str, seed: int) -> dict[str, float]:
    """Shares of right answers to held-out questions, before and after the run."""
    given, asked = questions(seed)
    before = trained(objective, given[:BATCH], seed, 1)
    after = trained(objective, given, seed, STEPS[objective])
    return {"before": right(objective, before, asked), "after": right(objective, after, asked)}


def main() -> None:
    """Print the shares of all seeds, and one JSON line."""
    found = {objective: {seed: measured(objective, seed) for seed in SEEDS} for objective in CONFIGS}
    for objective, each in found.items():
        print(objective, each)
    print(json.dumps({"objectives": {name: _verdict(each) for name, each in found.items()}, "seeds": found}))


def _verdict(found: dict[int, dict[str, float]]) -> dict[str, object]:
    before, after = ([each[name] for each in found.values()] for name in ("before", "after"))
    shown = f"unseen letters sorted: {min(after):.0%} to {max(after):.0%} right, before {max(before):.0%}"
    shown += f", by chance {CHANCE:.1%}"
    return {"shown": shown, "held": min(after) >= 0.95 and max(before) <= 2 * CHANCE}


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
