"""Masked LM and span corruption beat the best unigram model of the very tokens that they predict.

The texts are those that the bundled model learned from; a tenth is held out. The bound is the entropy of the predicted
tokens' own frequencies, below which no model gets that does not read the text around them. Of the targets of span
corruption, sentinels and end are left out.

    python -m tests.learning.pretraining
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.checkpoint import load
from macllm.nn.loss import token_losses
from macllm.ops.cross_entropy import cross_entropy
from macllm.text.tokenizer import Tokenizer
from macllm.train import objectives
from macllm.train.config import PretrainConfig
from macllm.train.objectives.mlm import MaskedLM
from macllm.train.objectives.span import SpanCorruption
from macllm.train.pretrain import train
from macllm.train.rows import PlainText

TEXTS = Path(__file__).parents[2] / "models" / "maclet" / "data"
VOCAB, LENGTH, WIDTH = 320, 64, 64
ENCODER = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "type_vocab_size": 1,
    "tie_word_embeddings": True,
}
TEXT_TO_TEXT = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "d_kv": 32,
    "d_ff": 2 * WIDTH,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
DRAWS = 4  # the entropy of few tokens' frequencies is too low
STEPS = {"mlm": 400, "span": 1600}


def written(folder: Path) -> None:
    """Texts in rows, a byte-level tokenizer of them with mask and sentinels, and the two configs."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing

    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.txt")))
    lines = [line for line in text.splitlines() if len(line) > 40]
    random = np.random.default_rng(0)
    order = random.permutation(len(lines))
    held = set(order[: len(lines) // 10].tolist())
    parts = {"train": [x for i, x in enumerate(lines) if i not in held], "valid": [lines[i] for i in sorted(held)]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in part))
    tokenizer = ByteLevelBPETokenizer()
    special = ["<pad>", "</s>", "<mask>", *(f"<extra_id_{n}>" for n in reversed(range(20)))]
    tokenizer.train_from_iterator(parts["train"], vocab_size=VOCAB, special_tokens=special, show_progress=False)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    for name, config in (("mlm", ENCODER), ("span", TEXT_TO_TEXT)):
        (folder / f"{name}.json").write_text(json.dumps(config))


def settings(folder: Path, objective: Any, steps: int) -> PretrainConfig:
    """The run of an objective."""
    return PretrainConfig(
        objective=objective,
        config=str(folder / f"{objective}.json"),
        tokenizer=str(folder),
        data=str(folder / "train.jsonl"),
        output=str(folder / f"{objective}-run"),
        max_seq_length=LENGTH,
        batch_size=16,
        iters=steps,
        learning_rate=5e-3,
        init_std=0.05,
        beta2=0.98,
        weight_decay=0.01,
        warmup=0.05,
        save_every=0,
        cache_gb=0.0,
    )


def measured(config: PretrainConfig, folder: Path) -> tuple[float, float, int]:
    """Loss of the held-out tokens, entropy of their frequencies, both in nats, and their number."""
    model, tokenizer = load(Path(config.output) / "model")
    objective = objectives.chosen(config, model, tokenizer)
    rows = [json.loads(line)["text"] for line in (folder / "valid.jsonl").read_text().splitlines()]
    once = [one.cut(0, LENGTH) for row in rows for one in objective.examples(PlainText(row, "valid"), tokenizer)]
    examples = once * DRAWS  # other tokens of each text
    batch = objective.collate(examples, np.random.default_rng(1))
    if isinstance(objective, MaskedLM):
        hidden = model.hidden(mx.array(batch.inputs[:, :LENGTH]), lengths=mx.array(batch.lengths))
        kept, targets = batch.chosen[:, :LENGTH], batch.targets[:, :LENGTH]
        picked = hidden.reshape(-1, WIDTH)[mx.array(np.flatnonzero(kept))]
        losses = token_losses(model, picked, mx.array(targets[kept]))
    else:
        assert isinstance(objective, SpanCorruption)
        start = np.full((len(batch.targets), 1), model.info.decoder_start, np.int32)
        inputs = mx.array(np.concatenate([start, batch.targets[:, :-1]], axis=1))
        lengths = mx.array(batch.source_lengths)
        logits = model(inputs, source=mx.array(batch.sources), source_lengths=lengths)
        kept = np.arange(batch.targets.shape[1]) < batch.target_lengths[:, None]
        kept &= ~np.isin(batch.targets, [*objective.sentinels, *tokenizer.end_token_ids])
        targets = batch.targets
        losses = cross_entropy(logits.reshape(-1, VOCAB)[mx.array(np.flatnonzero(kept))], mx.array(targets[kept]))
    counts = np.bincount(targets[kept]).astype(float)
    shares = counts[counts > 0] / counts.sum()
    return losses.mean().item(), float(-(shares * np.log(shares)).sum()), int(counts.sum())


def learned(objective: str, steps: int) -> dict[str, Any]:
    """The result of a run on the texts."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder)
        assert Tokenizer.from_folder(folder).vocab_size <= VOCAB
        config = settings(folder, objective, steps)
        train(config)
        loss, bound, count = measured(config, folder)
    seconds = round(time.perf_counter() - began)
    return {"loss": round(loss, 3), "unigram_entropy": round(bound, 3), "tokens": count, "seconds": seconds}


def main() -> None:
    """Print the results as one line of JSON."""
    found = {objective: learned(objective, steps) for objective, steps in STEPS.items()}
    objectives = {
        objective: {
            "shown": f"{each['loss']} nats a token, the best unigram model {each['unigram_entropy']}",
            "held": each["loss"] < each["unigram_entropy"],
        }
        for objective, each in found.items()
    }
    print(json.dumps({"measured": found, "objectives": objectives}))


if __name__ == "__main__":
    main()
