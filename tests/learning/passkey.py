"""Passkey retrieval before and after a longer context: `python -m tests.learning.passkey`.

A model of two layers learns to repeat a key of four digits from texts of at most 32 words, and fails beyond. Two short
full fine-tunings on texts of up to 128 words follow: with YaRN, and without a change of its positions. Accuracy is the
share of held-out keys of which all four digits are right, the key being in the first quarter of a text of that length.
The last line is one JSON object.
"""

from __future__ import annotations

import json
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
RUN = {"batch_size": 32, "save_every": 0, "steps_per_eval": 0, "steps_per_report": 100}


def key(draw: random.Random) -> list[str]:
    """The word "key" and its digits, none twice: each is found as what followed the one before."""
    return ["key", *map(str, draw.sample(range(10), DIGITS))]


def text(draw: random.Random, longest: int) -> str:
    """A text of `longest` words or down to half of it, with one key two or three times, last at its end."""
    times, length = draw.randint(2, 3), draw.randint(longest // 2, longest)
    words = [draw.choice(FILLER) for _ in range(length - times * (DIGITS + 1))]
    secret = key(draw)
    for at in sorted((draw.randint(0, len(words)) for _ in range(times - 1)), reverse=True):
        words[at:at] = secret
    return " ".join([*words, *secret])


def question(draw: random.Random, length: int) -> tuple[str, str]:
    """A text of `length` words that ends after the second "key", and the digits that follow."""
    words = [draw.choice(FILLER) for _ in range(length - 2 * (DIGITS + 1))]
    secret, at = key(draw), draw.randint(0, len(words) // 4)
    return " ".join([*words[:at], *secret, *words[at:], "key"]), " " + " ".join(secret[1:])


def accuracy(folder: Path, count: int) -> dict[int, float]:
    """The share of `count` keys that the model finds, by length."""
    model, tokenizer = checkpoint.load(folder)
    found: dict[int, float] = {}
    for length in LENGTHS:
        draw = random.Random(10_000 + length)
        asked = [tuple(map(tokenizer.encode, question(draw, length))) for _ in range(count)]
        rows = mx.array([prompt + answer for prompt, answer in asked])
        predicted = mx.argmax(model(rows)[:, -DIGITS - 1 : -1], axis=-1)
        found[length] = float((predicted == rows[:, -DIGITS:]).all(axis=-1).mean())
    return found


def write_rows(path: Path, count: int, longest: int, seed: int) -> Path:
    """Rows of texts, the same for the same seed."""
    draw = random.Random(seed)
    path.write_text("".join(json.dumps({"text": text(draw, longest)}) + "\n" for _ in range(count)))
    return path


def write_model(root: Path) -> Path:
    """Short rows, their tokenizer and the config of a small Llama: their folder."""
    rows = write_rows(root / "train.jsonl", 20_000, SHORT, 1)
    train_tokenizer(TokenizerConfig(data=(str(rows),), output=str(root), vocab_size=VOCABULARY))
    config: dict[str, Any] = {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": SHORT, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0, "tie_word_embeddings": True, "eos_token_id": 0,
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    return root


def main(steps: int = 1000, more_steps: int = 220, count: int = 100) -> dict[str, Any]:
    """Train, measure and print; the result of the last line."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = write_model(Path(folder))
        config = PretrainConfig.load(
            data=root / "train.jsonl", config=root / "config.json", tokenizer=root, output=root / "base", iters=steps,
            learning_rate=4e-3, weight_decay=0.0, init_std=0.1, max_seq_length=SHORT + 8, **RUN,
        )  # fmt: skip
        base = pretrain.train(config) / "model"
        found = {"before": accuracy(base, count)}
        rows = write_rows(root / "long.jsonl", 32 * more_steps, LENGTHS[-1], 2)
        for name, changes in (("yarn", {"rope_scaling": "yarn"}), ("unscaled", {})):
            tuned = finetune(
                data=rows, model=base, adapter_path=root / name, method="full", iters=more_steps, learning_rate=2e-3,
                max_seq_length=LENGTHS[-1] + 8, context_length=LENGTHS[-1], **changes, **RUN,
            )  # fmt: skip
            found[name] = accuracy(tuned, count)
    for name, shares in found.items():
        print(f"{name:10s}" + "".join(f"  {length} words {share:6.1%}" for length, share in shares.items()))
    far, before, after = LENGTHS[1], found["before"], found["yarn"]
    learned = {
        "shown": f"keys found in {far} words: {before[far]:.0%} before, {after[far]:.0%} after YaRN "
        f"({LENGTHS[2]} words: {before[LENGTHS[2]]:.0%}, {after[LENGTHS[2]]:.0%})",
        "held": before[SHORT] >= 0.7 and before[far] <= 0.1 and after[far] >= 0.9,
    }
    result = {"objectives": {"longer context": learned}, "accuracy": found, "seconds": time.perf_counter() - began}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
