"""Passkey retrieval before and after a longer context: `python -m tests.learning.passkey`.

A model of two layers learns to repeat a key of four digits from texts of at most 32 words, and finds none in longer
ones. Short full fine-tunings on texts of up to 128 words follow: with YaRN, with a larger base of the rotary
wavelengths, and without a change of its positions. Only the digits asked for are learned: the words around them are
random, and the gradients of their losses noise. Accuracy is the share of held-out keys of which all four digits are
right, the key being in the first quarter of a text of that length. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from macllm import checkpoint
from macllm.train import pretrain
from macllm.train.config import PretrainConfig
from macllm.train.finetune import finetune
from macllm.train.tokenizer import TokenizerConfig
from macllm.train.tokenizer import train as train_tokenizer

SHORT = 32  # words
LENGTHS = (SHORT, 2 * SHORT, 3 * SHORT, 4 * SHORT)
FILLER = ("the", "sun", "sea", "tree", "road", "house", "river", "wind")
VOCABULARY = 302  # bytes, and each word and digit as one token
DIGITS = 4
BASE = 100.0  # of wavelengths up to 350 positions: beyond 32, the slow ones have values not seen in training
WAYS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": "yarn"},
    "larger base": {"rope_theta": 10 * BASE},
    "unscaled": {},
}
RUN: dict[str, Any] = {
    "batch_size": 32, "mask_prompt": True, "save_every": 0, "steps_per_eval": 0, "steps_per_report": 100,
}  # fmt: skip


def key(draw: random.Random) -> list[str]:
    """The word "key" and its digits, none twice: each is found as what followed the one before."""
    return ["key", *map(str, draw.sample(range(10), DIGITS))]


def row(draw: random.Random, shortest: int, longest: int) -> dict[str, str]:
    """A question in a text of `shortest` to `longest` words, more often a long one, and its answer.

    Every second key is put into the first quarter: far ones would be rare otherwise.
    """
    length = int(shortest + (longest + 1 - shortest) * math.sqrt(draw.random()))
    return asked(draw, length, draw.choice((1, 4)))


def asked(draw: random.Random, length: int, part: int) -> dict[str, str]:
    """A question in a text of `length` words, its key in the first of `part` parts, and its answer."""
    words = [draw.choice(FILLER) for _ in range(length - 2 * (DIGITS + 1))]
    secret, at = key(draw), draw.randint(0, len(words) // part)
    text = [*words[:at], *secret, *words[at:], "key"]
    return {"prompt": " ".join(text), "completion": " " + " ".join(secret[1:])}


def accuracy(folder: Path, count: int) -> dict[int, float]:
    """The share of `count` keys that the model finds, by length."""
    model, tokenizer = checkpoint.load(folder)
    found: dict[int, float] = {}
    for length in LENGTHS:
        draw = random.Random(10_000 + length)
        rows = mx.array([tokenizer.encode("".join(asked(draw, length, 4).values())) for _ in range(count)])
        predicted = mx.argmax(model(rows)[:, -DIGITS - 1 : -1], axis=-1)
        found[length] = float((predicted == rows[:, -DIGITS:]).all(axis=-1).mean())
    return found


def write_rows(path: Path, count: int, lengths: tuple[int, int], seed: int) -> Path:
    """Rows of texts, the same for the same seed."""
    draw = random.Random(seed)
    path.write_text("".join(json.dumps(row(draw, *lengths)) + "\n" for _ in range(count)))
    return path


def write_model(root: Path, count: int) -> Path:
    """`count` short rows, their tokenizer and the config of a small Llama: their folder."""
    rows = write_rows(root / "train.jsonl", count, (12, SHORT), 1)
    train_tokenizer(TokenizerConfig(data=(str(rows),), output=str(root), vocab_size=VOCABULARY))
    config: dict[str, Any] = {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": SHORT, "rms_norm_eps": 1e-5,
        "rope_theta": BASE, "tie_word_embeddings": True, "eos_token_id": 0,
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    return root


def main(steps: int = 600, more_steps: int = 180, count: int = 200) -> dict[str, Any]:
    """Train, measure and print; the result of the last line."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        root = write_model(Path(folder), RUN["batch_size"] * steps)
        config = PretrainConfig.load(
            data=root / "train.jsonl", config=root / "config.json", tokenizer=root, output=root / "base", iters=steps,
            learning_rate=4e-3, weight_decay=0.0, init_std=0.1, max_seq_length=SHORT + 8, **RUN,
        )  # fmt: skip
        base = pretrain.train(config) / "model"
        found = {"before": accuracy(base, count)}
        rows = write_rows(root / "long.jsonl", RUN["batch_size"] * more_steps, (SHORT, LENGTHS[-1]), 2)
        for name, changes in WAYS.items():
            tuned = finetune(
                data=rows, model=base, adapter_path=root / name, method="full", iters=more_steps, learning_rate=2e-3,
                max_seq_length=LENGTHS[-1] + 8, context_length=LENGTHS[-1], **changes, **RUN,
            )  # fmt: skip
            found[name] = accuracy(tuned, count)
    for name, shares in found.items():
        print(f"{name:12s}" + "".join(f"  {length} words {share:6.1%}" for length, share in shares.items()))
    result = {"objectives": {"longer context": verdict(found)}, "accuracy": found}
    print(json.dumps({**result, "cpu_seconds": round(time.process_time() - began)}))
    return result


def verdict(found: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The accuracies in words, and whether both ways reach all lengths, unlike the model before."""
    before, *ways = ([found[name][length] for length in LENGTHS] for name in ("before", "yarn", "larger base"))
    texts = ["/".join(f"{share:.0%}" for share in shares[1:]) for shares in (before, *ways)]
    return {
        "shown": f"keys found in texts 2, 3, 4 times as long: {texts[0]} before, {texts[1]} after YaRN, "
        f"{texts[2]} after a larger base",
        "held": before[0] >= 0.95 and max(before[1:]) <= 0.1 and min(map(min, ways)) >= 0.95,
    }


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
