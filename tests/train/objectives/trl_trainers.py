"""TRL's preference trainers on batches of ours: their loss functions, and nothing else of them."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from macllm.checkpoint import load_model
from tests.tables.gradients import CASES, VOCAB, _adapted, written
from tests.tables.twins import Twins


def trainer(kind: str, oracle: Any, reference: Any, folder: Path, **settings: Any) -> Any:
    """TRL's trainer ("dpo" or "kto") of `oracle`.

    Without a reference, an adapter of PEFT's has its base as one.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<unk>": 1, "<end>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    row = {"prompt": "w3", "chosen": "w4", "rejected": "w5"} if kind == "dpo" else {"prompt": "w3", "completion": "w4"}
    rows = [row if kind == "dpo" else {**row, "label": bool(i)} for i in range(2)]
    config, trainers = (trl.DPOConfig, trl.DPOTrainer) if kind == "dpo" else (trl.KTOConfig, trl.KTOTrainer)
    args = config(
        output_dir=str(folder), per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, remove_unused_columns=False, **settings,
    )  # fmt: skip
    return trainers(
        model=oracle, ref_model=reference, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def padded(rows: Sequence[Any], name: str = "", *, positions: bool = True) -> dict[str, Any]:
    """Inputs of TRL's trainers, padded on both sides.

    Without `positions`, those of a row begin in its padding.
    """
    import torch

    longest = max(map(len, rows)) + 3
    tokens, real, learned = (np.zeros((len(rows), longest), np.int64) for _ in range(3))
    for i, row in enumerate(rows):
        start = (longest - len(row)) // 2
        at = slice(start, start + len(row))
        tokens[i, at], real[i, at], learned[i, at] = row.tokens, 1, row.loss_mask
    found = {"input_ids": tokens, "attention_mask": real, "completion_mask": learned}
    if positions:
        found["position_ids"] = np.maximum(0, real.cumsum(1) - 1)
    return {name + key: torch.tensor(value) for key, value in found.items()}


@contextlib.contextmanager
def of_same_type(reference: Any, oracle: Any) -> Iterator[None]:
    """A block in which the reference has the type of the oracle's weights, and its own afterwards."""
    if reference is not None:
        reference.to(next(oracle.parameters()).dtype)
    yield
    if reference is not None:
        reference.float()


class WithReference:
    """A model of ours with its reference, and the same models for TRL; that of an adapter is its base."""

    def __init__(self, folder: Path, adapter: str = "") -> None:
        import torch

        self.other = self.other_oracle = None
        if adapter:
            self.model, self.oracle = _adapted(adapter, folder)
        else:
            self.oracle = written(CASES["Llama, grouped queries"], folder / "base")
            self.model = load_model(folder / "base")
            self.other_oracle = copy.deepcopy(self.oracle)
            torch.manual_seed(5)
            with torch.no_grad():
                for weight in self.other_oracle.parameters():
                    weight.add_(0.05 * torch.randn_like(weight))
            self.other_oracle.save_pretrained(folder / "reference")
            self.other = load_model(folder / "reference")
        self.twins = Twins(self.model, self.oracle, folder, adapts=bool(adapter))
        self.model.train()

    def trainer(self, kind: str, folder: Path, **settings: Any) -> Any:
        """TRL's trainer of the models."""
        made = trainer(kind, self.oracle, self.other_oracle, folder, **settings)
        if self.other is None:  # TRL's reference would be a copy of the adapter; a new adapter's is the base
            self.oracle.delete_adapter("ref")
        return made
