"""Objectives of pretraining beat the best unigram model of the tokens that they predict.

The texts are those that the bundled model learned from; a tenth is held out. The bound is the entropy of the predicted
tokens' own frequencies, below which no model gets that does not read the text around them. Of the targets of span
corruption, sentinels and end are left out; of those of infilling, the tokens that the source shows.

    python -m tests.learning.pretraining [--objectives mlm,span,infill]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
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
from macllm.train.objectives.infill import TextInfilling, infilled
from macllm.train.objectives.mlm import MaskedLM
from macllm.train.objectives.seq2seq import TextToTextBatch
from macllm.train.objectives.span import SpanCorruption
from macllm.train.objectives.texts import Text
from macllm.train.pretrain import train
from macllm.train.rows import PlainText

TEXTS = Path(__file__).parents[2] / "models" / "maclet" / "data"
VOCAB, LENGTH, WIDTH = 320, 64, 64
GAIN, SEEDS = 0.3, (0, 1, 2)  # nats a token below the bound, for each seed
CONFIGS: dict[str, dict[str, Any]] = {
    "mlm": {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": LENGTH, "type_vocab_size": 1, "tie_word_embeddings": True,
    },
    "span": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": VOCAB, "d_model": WIDTH,
        "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    },
    "infill": {
        "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "vocab_size": VOCAB, "d_model": WIDTH,
        "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": LENGTH + 8,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1,
    },
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "mlm": {
        "iters": 800, "batch_size": 16, "learning_rate": 3e-3, "init_std": 0.05, "mask_ratio": 0.3, "warmup": 0.1,
    },
    "span": {"iters": 700, "batch_size": 32, "learning_rate": 3e-3, "init_std": 0.1, "mask_ratio": 0.3},
    "infill": {
        "iters": 400, "batch_size": 16, "learning_rate": 3e-3, "init_std": 0.15, "permute_sentences": True,
        "warmup": 0.1,
    },
}  # fmt: skip
DRAWS = {"mlm": 4, "span": 4, "infill": 2}  # corruptions of each text: the entropy of few tokens is too low


def written(folder: Path) -> None:
    """Texts in rows, a byte-level tokenizer of them with mask and sentinels, and the configs."""
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
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))


def settings(folder: Path, objective: Any, seed: int, **recipe: Any) -> PretrainConfig:
    """The run of an objective in a folder with texts, tokenizer and configs."""
    return PretrainConfig(
        objective=objective,
        config=str(folder / f"{objective}.json"),
        tokenizer=str(folder),
        data=str(folder / "train.jsonl"),
        output=str(folder / f"{objective}-run"),
        max_seq_length=LENGTH,
        beta2=0.98,
        weight_decay=0.01,
        save_every=0,
        cache_gb=0.0,
        seed=seed,
        **{"warmup": 0.05} | recipe,
    )


def shown_and_hidden(
    objective: TextInfilling, examples: Sequence[Text], random: np.random.Generator
) -> tuple[TextToTextBatch, np.ndarray]:
    """A batch of corrupted texts, and the target tokens (B, T) that its sources hide."""
    sources, hidden = list[np.ndarray](), list[np.ndarray]()
    for one in examples:
        places = np.arange(len(one.inner))
        sentences = np.split(places, np.flatnonzero(np.isin(one.inner[:-1], objective.stops)) + 1)
        order = np.concatenate([sentences[i] for i in random.permutation(len(sentences))])
        shown = infilled(order, -1, objective.ratio, objective.mean_length, random)
        sources.append(one.around(np.where(shown < 0, objective.mask_token, one.inner[shown])))
        hidden.append(len(one.before) + np.setdiff1d(places, shown))
    batch = TextToTextBatch.of(sources, [one.tokens for one in examples])
    kept = np.zeros(batch.targets.shape, dtype=bool)
    for row, own in zip(kept, hidden, strict=True):
        row[own] = True
    return batch, kept


def restored(model: Any, objective: Any, examples: Sequence[Text], ends: frozenset[int]) -> tuple[mx.array, np.ndarray]:
    """The losses of the predicted tokens of an encoder-decoder, and these tokens, both (N,)."""
    random = np.random.default_rng(1)
    if isinstance(objective, SpanCorruption):
        batch = objective.collate(examples, random)
        kept = np.arange(batch.targets.shape[1]) < batch.target_lengths[:, None]
        kept &= ~np.isin(batch.targets, [*objective.sentinels, *ends])
    else:
        batch, kept = shown_and_hidden(objective, examples, random)
    start = np.full((len(batch.targets), 1), model.info.decoder_start, np.int32)
    inputs = mx.array(np.concatenate([start, batch.targets[:, :-1]], axis=1))
    logits = model(inputs, source=mx.array(batch.sources), source_lengths=mx.array(batch.source_lengths))
    picked = logits.reshape(-1, VOCAB)[mx.array(np.flatnonzero(kept))]
    return cross_entropy(picked, mx.array(batch.targets[kept])), batch.targets[kept]


def unmasked(model: Any, objective: MaskedLM, examples: Sequence[Text]) -> tuple[mx.array, np.ndarray]:
    """The losses of the predicted tokens of an encoder, and these tokens, both (N,)."""
    batch = objective.collate(examples, np.random.default_rng(1))
    hidden = model.hidden(mx.array(batch.inputs[:, :LENGTH]), lengths=mx.array(batch.lengths))
    kept, targets = batch.chosen[:, :LENGTH], batch.targets[:, :LENGTH]
    picked = hidden.reshape(-1, WIDTH)[mx.array(np.flatnonzero(kept))]
    return token_losses(model, picked, mx.array(targets[kept])), targets[kept]


def entropy(counts: np.ndarray) -> float:
    """The entropy of frequencies in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def measured(config: PretrainConfig, folder: Path) -> tuple[float, float, int]:
    """Loss of the held-out tokens, entropy of their frequencies, both in nats, and their number."""
    model, tokenizer = load(Path(config.output) / "model")
    objective: Any = objectives.chosen(config, model, tokenizer)
    rows = [json.loads(line)["text"] for line in (folder / "valid.jsonl").read_text().splitlines()]
    examples = [one.cut(0, LENGTH) for row in rows for one in objective.examples(PlainText(row, "valid"), tokenizer)]
    examples *= DRAWS[config.objective]
    if isinstance(objective, MaskedLM):
        losses, targets = unmasked(model, objective, examples)
    else:
        losses, targets = restored(model, objective, examples, tokenizer.end_token_ids)
    return losses.mean().item(), entropy(np.bincount(targets)), len(targets)


def learned(objective: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The result of a run on the texts."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder)
        assert Tokenizer.from_folder(folder).vocab_size <= VOCAB
        config = settings(folder, objective, seed, **RECIPES[objective] | changes)
        train(config)
        loss, bound, count = measured(config, folder)
    seconds = round(time.process_time() - began)
    return {"loss": round(loss, 3), "unigram_entropy": round(bound, 3), "tokens": count, "cpu_seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the results of all runs, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objectives", default=",".join(CONFIGS))
    found: dict[str, list[dict[str, Any]]] = {}
    for objective in parser.parse_args(arguments).objectives.split(","):
        for seed in SEEDS:
            found.setdefault(objective, []).append(learned(objective, seed))
            print(objective, seed, found[objective][-1], flush=True)
    verdicts = {name: verdict(each) for name, each in found.items()}
    print(json.dumps({"objectives": verdicts, "measured": found}))


def verdict(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The losses of all seeds in words, and whether each is below the bound by `GAIN`."""
    losses, bounds = ([each[name] for each in found] for name in ("loss", "unigram_entropy"))
    shown = f"{min(losses):.2f} to {max(losses):.2f} nats a token ({len(found)} seeds), "
    shown += f"the best unigram model {min(bounds):.2f}"
    return {"shown": shown, "held": all(a < b - GAIN for a, b in zip(losses, bounds, strict=True))}


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
