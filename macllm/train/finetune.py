"""A model, rows and a low-rank adapter that learns them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from macllm import adapter, checkpoint
from macllm.errors import UsageError
from macllm.nn import lora
from macllm.nn.models import EncoderDecoderLM, EncoderLM

from . import data
from .config import FinetuneConfig
from .events import TrainEvent
from .loop import Trainer
from .objectives.clm import clm
from .run import Run


def finetune(
    config: FinetuneConfig | None = None, *, on_event: Callable[[TrainEvent], None] | None = None, **keywords: Any
) -> Path:
    """Train a LoRA adapter; the run's folder, which mlx-lm takes as an adapter as well.

    Takes a config or its fields as keywords. Interrupted, it leaves a snapshot and an adapter of the last whole
    step, and goes on with `resume=True`.
    """
    config = config or FinetuneConfig.load(**keywords)
    with closing(events(config)) as stream:
        for event in stream:
            if on_event is not None:
                on_event(event)
    return Path(config.adapter_path)


def events(config: FinetuneConfig) -> Generator[TrainEvent]:
    """What happens while `config` is trained. Closing the generator ends the run, saved."""
    folder = Path(config.adapter_path)
    Run.check(folder, config)
    model, tokenizer = checkpoint.load(config.model)
    rows = data.load(config, tokenizer, _reach(model, config))
    wrapped = lora.apply(
        model,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        keys=config.keys,
        num_layers=config.num_layers,
        seed=config.seed,
    )
    with Run(folder, config, {"rows": rows.fingerprint(), "adapted": wrapped}) as run:
        trainer = Trainer(model, clm, config, rows, run.snapshots)
        yield from run.watch(trainer, lambda: adapter.save(model, folder, _about(config)), folder)


def _reach(model: Any, config: FinetuneConfig) -> int | None:
    if isinstance(model, EncoderLM | EncoderDecoderLM):
        raise UsageError(f"{config.model} is no causal language model", remedy="a model that macllm chat talks to")
    return model.spec.context_length


def _about(config: FinetuneConfig) -> dict[str, Any]:
    local = Path(config.model)
    return {"model": str(local.resolve()) if local.is_dir() else config.model, "learning_rate": config.learning_rate}
