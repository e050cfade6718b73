"""Training steps for compare.py: AdamW on random tokens, for all weights or a LoRA adapter.

The loss counts every token.

Adapters are of rank 8 on the queries, keys, values and outputs of attention, without dropout; each peer makes them by
its own means.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from compare_table import Load

Step = Callable[[], object]

KEYS = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK, ALPHA, RATE, BETAS, DECAY = 8, 16.0, 1e-4, (0.9, 0.999), 0.01


def tokens(load: Load) -> np.ndarray:
    """Random rows (batch, length + 1): inputs, and targets shifted by one."""
    return np.random.default_rng(0).integers(0, 8000, (load.batch, load.length + 1))


def macllm(folder: str, adapts: bool, load: Load, *, checkpoints: bool = False) -> Step:
    """macllm's training loop."""
    from macllm.checkpoint import load_model
    from macllm.nn import lora
    from macllm.train.config import TrainConfig
    from macllm.train.data import Dataset
    from macllm.train.events import Advanced, Counts
    from macllm.train.loop import Trainer
    from macllm.train.objectives.clm import CausalLM
    from macllm.train.render import Example

    model = load_model(Path(folder))
    if adapts:
        lora.apply(model, rank=RANK, alpha=ALPHA, keys=KEYS)
    config = TrainConfig(
        data="random",
        batch_size=load.batch,
        iters=10**6,
        learning_rate=RATE,
        schedule="constant",
        warmup=0.0,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=DECAY,
        steps_per_report=1,
        steps_per_eval=0,
        save_every=0,
        grad_checkpoint=checkpoints,
    )
    learnt = np.arange(load.length + 1) > 0
    rows = [Example(row.astype(np.int32), learnt, "random") for row in tokens(load)]
    events = Trainer.of(model, CausalLM(), config, Dataset(rows, [], Counts())).run()
    return lambda: next(event for event in events if isinstance(event, Advanced))  # one for each step


def mlx_lm(folder: str, adapts: bool, load: Load, *, checkpoints: bool = False) -> Step:
    """mlx-lm's loss, layers and optimizer."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.optimizers import AdamW
    from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model: Any = load_model(Path(folder))[0]
    if adapts:
        model.freeze()
        keys = [f"self_attn.{key}" for key in KEYS]
        config = {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0, "keys": keys}
        linear_to_lora_layers(model, len(model.layers), config)
    if checkpoints:
        grad_checkpoint(model.layers[0])
    model.train()
    optimizer = AdamW(RATE, betas=list(BETAS), weight_decay=DECAY)
    gradient = nn.value_and_grad(model, default_loss)
    batch, lengths = mx.array(tokens(load)), mx.array([[0, load.length]] * load.batch)

    def step() -> None:
        (loss, _), gradients = gradient(model, batch, lengths)
        optimizer.update(model, gradients)
        mx.eval(model.trainable_parameters(), optimizer.state, loss)

    return step


def torch(folder: str, adapts: bool, load: Load) -> Step:
    """transformers' model, peft's adapter, and torch's fused AdamW, as in transformers' Trainer."""
    import torch as pt
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if adapts:
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(KEYS), task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    model.train()
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = pt.optim.AdamW(learnt, RATE, BETAS, weight_decay=DECAY, fused=True)
    rows = pt.from_numpy(tokens(load))
    inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad()
        loss = model(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        pt.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        loss.item()

    return step


STEPS = {"macllm": macllm, "mlx-lm": mlx_lm, "torch": torch}


def put_blas_under_mlx() -> None:
    """Rebind MLX's products to OpenBLAS, to measure the memory of mlx-lm's whole batch faster."""
    from macllm.ops.cpu import blas

    blas.install()
