"""A run of macllm, and the same steps by torch's AdamW on a model of transformers or PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macllm.train.config import FinetuneConfig
from macllm.train.events import Step
from macllm.train.finetune import finetune
from macllm.train.passes import Passes


def followed(config: FinetuneConfig) -> tuple[Path, list[Step], list[Any]]:
    """The result of a run, and the report and the micro-batches of each step."""
    batches: list[Any] = []
    steps: list[Step] = []
    gradients = Passes.gradients

    def noted(self: Passes[Any], step: int, weights: Any) -> Any:
        batches.extend(self.source.batches(step, self.model))
        return gradients(self, step, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "gradients", noted)
        path = finetune(config, on_event=lambda event: steps.append(event) if isinstance(event, Step) else None)
    return path, steps, batches


def train_beside(
    oracle: Any, config: FinetuneConfig, steps: list[Step], batches: list[Any], decays: Callable[[str, Any], bool]
) -> None:
    """Train `oracle` on rows without their padding, and compare losses and gradient norms."""
    import torch

    trained = {name: weight for name, weight in oracle.named_parameters() if weight.requires_grad}
    groups = [
        {"params": [weight for name, weight in trained.items() if decays(name, weight) is every], "weight_decay": rate}
        for every, rate in ((True, config.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon
    )
    for batch, step in zip(batches, steps, strict=True):
        lengths, loss = [int(row.nonzero()[0].max()) + 1 for row in batch.weights], torch.tensor(0.0)
        assert len(set(lengths)) > 1
        for i, length in enumerate(lengths):
            logits = oracle(torch.tensor(batch.inputs[i : i + 1, :length]).long(), use_cache=False).logits[0]
            targets = torch.tensor(batch.targets[i, :length]).long()
            each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            loss = loss + (each * torch.tensor(batch.weights[i, :length])).sum() / float(batch.weights.sum())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)
        optimizer.step()
        assert step.loss == pytest.approx(loss.item(), rel=2e-6)
        assert step.grad_norm == pytest.approx(norm.item(), rel=1e-5)
