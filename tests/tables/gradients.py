"""Loss and every gradient against transformers, PEFT and torch, on batches that are easy to get wrong.

The references pad, mask and average by their own means: transformers' loss from labels, or torch's cross-entropy for
rows with fractional loss weights.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from macllm import adapter, checkpoint
from macllm.checkpoint import load_model
from macllm.nn import quantize
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM, collate
from macllm.train.render import Example
from tests.families import oracles
from tests.tables.table import Say, Table
from tests.tables.twins import GRADIENT, LOSS, Difference, Twins

VOCAB = 67
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SMALL, "query_pre_attn_scalar": 10, "sliding_window": 5}


@dataclass(frozen=True)
class Rows:
    """Rows of a batch, and the side on which the reference pads them."""

    examples: Sequence[Example]
    pads_left: bool = False


def example(length: int, masked: int, *, seed: int = 0, zeros: bool = False) -> Example:
    """Random tokens, the first `masked` of them without a loss; with `zeros` half of them are 0."""
    random = np.random.default_rng((seed, length, masked))
    tokens = random.integers(1, VOCAB, length)
    if zeros:
        tokens[random.random(length) < 0.5] = 0
        tokens[-1] = 0
    return Example(tokens.astype(np.int32), np.arange(length) >= max(1, masked), "here:1")


def weighted(row: Example, *weights: float) -> Example:
    """The row with these loss weights on stretches of its answer."""
    parts = np.array_split(np.flatnonzero(row.loss_mask), len(weights))
    values = np.zeros(len(row), np.float32)
    for part, weight in zip(parts, weights, strict=True):
        values[part] = weight
    return dataclasses.replace(row, loss_mask=values > 0, weights=values)


def several_turns(row: Example) -> Example:
    """The row with the loss on two stretches only, as in a conversation."""
    at = np.arange(len(row))
    return dataclasses.replace(row, loss_mask=((at >= 4) & (at < 7)) | (at >= 12))


UNEQUAL = (example(17, 5), example(2, 1), example(11, 3), example(23, 9))
BATCHES = {
    "unequal lengths": Rows(UNEQUAL),
    "left padding": Rows(UNEQUAL, pads_left=True),
    "a truncated row": Rows((example(40, 6).cut(0, 24), example(9, 2), example(31, 25).cut(0, 24))),
    "a masked row": Rows((example(19, 19), example(8, 2), example(13, 4))),
    "token 0 in the text": Rows((example(18, 3, zeros=True), example(7, 2, zeros=True), example(12, 1, zeros=True))),
    "answers of one token": Rows((example(15, 14), example(2, 1), example(6, 5))),
    "one row": Rows((example(21, 4),)),
    "several turns": Rows((several_turns(example(20, 1)), several_turns(example(16, 1)))),
    "loss weights": Rows((weighted(example(22, 4), 1.0, 0.25, 3.0), weighted(example(10, 3), 0.5))),
}


def _case(name: str, model: str, options: dict[str, Any], **more: Any) -> oracles.Case:
    config = model.replace("ForCausalLM", "TextConfig" if "Gemma3" in model else "Config")
    return oracles.Case(name, model, config, {**options, **more})


CASES = {
    "Llama, grouped queries": _case("llama", "LlamaForCausalLM", SMALL, tie_word_embeddings=False),
    "Llama, tied head": _case("llama", "LlamaForCausalLM", SMALL, tie_word_embeddings=True),
    "Qwen3": _case("qwen3", "Qwen3ForCausalLM", SMALL, tie_word_embeddings=True),
    "Gemma 2": _case(
        "gemma2", "Gemma2ForCausalLM", GEMMA, attn_logit_softcapping=8.0, final_logit_softcapping=6.0
    ),
    "Gemma 3": _case("gemma3", "Gemma3ForCausalLM", GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "Mixtral": _case("mixtral", "MixtralForCausalLM", SMALL, num_local_experts=4, num_experts_per_tok=2),
    "Qwen3, experts": _case(
        "qwen3_moe", "Qwen3MoeForCausalLM", SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        norm_topk_prob=True,
    ),
}  # fmt: skip
ADAPTED = {
    "Llama, LoRA": ("Llama, grouped queries", None, {}),
    "Qwen3, rsLoRA": ("Qwen3", None, {"use_rslora": True}),
    "Llama, DoRA": ("Llama, grouped queries", None, {"use_dora": True}),
    "Llama, LoRA on 8 bits": ("Llama, grouped queries", 8, {}),
    "Llama, LoRA on 4 bits": ("Llama, tied head", 4, {}),
}
SUBJECTS = (*CASES, *ADAPTED)


class Subject:
    """A model of ours and its reference, with the same weights."""

    def __init__(self, name: str, folder: Path) -> None:
        if name in ADAPTED:
            model, oracle = _adapted(name, folder)
        else:
            oracle = written(CASES[name], folder / "base")
            model = load_model(folder / "base")
        self.twins = Twins(model, oracle, folder, adapts=name in ADAPTED)
        config = TrainConfig(data="rows", iters=1)
        self.gradient = Trainer.of(model, CausalLM(), config, Dataset(list(UNEQUAL), [], Counts())).passes.gradient
        model.train()

    def compare(self, rows: Rows) -> Difference:
        """Compare the loss and all gradients of a batch."""
        batch = collate(list(rows.examples))
        (total, weight, _), tree = self.gradient(batch)
        ours = {name: gradient / weight for name, gradient in tree_flatten(tree)}
        return self.twins.difference(total.item() / weight, ours, lambda oracle: reference_loss(oracle, rows))


def reference_loss(oracle: Any, rows: Rows) -> Any:
    """The mean loss of the rows, padded to a rectangle."""
    import torch

    longest = max(map(len, rows.examples))
    shape = len(rows.examples), longest
    tokens, labels, real = np.zeros(shape, np.int64), np.full(shape, -100), np.zeros(shape, np.int64)
    weights = np.zeros(shape, np.float32)
    for i, row in enumerate(rows.examples):
        at = slice(longest - len(row), longest) if rows.pads_left else slice(0, len(row))
        tokens[i, at], real[i, at], weights[i, at] = row.tokens, 1, row.loss_weights
        labels[i, at] = np.where(row.loss_mask, row.tokens, -100)
    inputs = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(real),
        "position_ids": torch.tensor(np.maximum(0, real.cumsum(1) - 1)),
        "use_cache": False,
    }
    if all(row.weights is None for row in rows.examples):
        return oracle(**inputs, labels=torch.tensor(labels)).loss
    logits = oracle(**inputs).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(labels)[:, 1:], reduction="none")
    chosen = torch.tensor(weights[:, 1:])
    return (losses * chosen).sum() / chosen.sum()


def written(case: oracles.Case, folder: Path) -> Any:
    """A random checkpoint in `folder`, and transformers' model of it."""
    import torch

    oracle = oracles.write(case, folder)
    if "gemma" in case.name:  # its norms multiply by 1 more than their weights
        with torch.no_grad():
            for weight in (weight for name, weight in oracle.named_parameters() if "norm" in name):
                weight.sub_(1.0)
        oracle.save_pretrained(folder)
    if hasattr(oracle.config, "num_local_experts") or hasattr(oracle.config, "num_experts"):
        oracle.set_experts_implementation("eager")  # the others have no products in float64
    return oracle


def _adapted(name: str, folder: Path) -> tuple[Any, Any]:
    """A model with an adapter on all linear layers whose B is not zero, and PEFT's with the same weights.

    The reference of a quantized base has its weights, unpacked once.
    """
    import peft
    import torch

    case, bits, settings = ADAPTED[name]
    oracle = written(CASES[case], folder / "base")
    model = load_model(folder / "base")
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
        unpacked = load_model(folder / "base")
        quantize.apply(unpacked, bits=bits, group_size=32)
        quantize.remove(unpacked)
        checkpoint.save(unpacked, None, folder / "unpacked")
        oracle = type(oracle).from_pretrained(folder / "unpacked", attn_implementation="eager").float()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", lora_dropout=0.0, **settings)
    oracle = peft.get_peft_model(oracle, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (weight for name, weight in oracle.named_parameters() if "lora_B" in name):
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    oracle.save_pretrained(folder / "adapter")
    adapter.attach(model, folder / "adapter")
    return model, oracle.eval()


def compare(name: str, batches: Sequence[str] = tuple(BATCHES)) -> dict[str, Difference]:
    """The differences of a subject on each batch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other longer than they compute
    try:
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(name, Path(folder))
            return {batch: subject.compare(BATCHES[batch]) for batch in batches}
    finally:
        torch.set_num_threads(threads)


def table(quick: bool, say: Say) -> Table:
    """Differences of every subject, the worst batch of each; `quick` compares two subjects."""
    subjects = ("Llama, grouped queries", "Llama, LoRA on 4 bits") if quick else SUBJECTS
    found: dict[str, dict[str, Difference]] = {}
    for name in subjects:
        say(f"gradients: {name}")
        found[name] = compare(name)
    rows = []
    for name, differences in found.items():
        loss = max(differences, key=lambda batch: differences[batch].loss)
        worst = max(differences, key=lambda batch: differences[batch].gradient)
        most = differences[worst]
        rows.append(
            [
                name,
                str(most.tensors),
                f"{differences[loss].loss:.1e} ({loss})",
                f"{max(each.own_loss for each in differences.values()):.1e}",
                f"{most.gradient:.1e} ({worst})",
                f"{max(each.own_gradient for each in differences.values()):.1e}",
            ]
        )
    return Table(
        f"Loss and all gradients against transformers and PEFT, {len(BATCHES)} batches each",
        ["model", "tensors", "loss", "the reference's own", "gradients", "the reference's own"],
        rows,
        f"in float32 {LOSS:.0e} of the reference's loss in float64, and {GRADIENT:.0e} of each tensor's largest "
        "gradient, or what the reference in float32 differs by, where that is more",
        all(difference.held for differences in found.values() for difference in differences.values()),
        {name: {batch: dataclasses.asdict(each) for batch, each in ds.items()} for name, ds in found.items()},
    )
