"""Heads that classify, beside adapters.

mlx-lm's format names their labels, PEFT's their number and task only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.nn as nn

from macllm.errors import CheckpointError
from macllm.families import labels
from macllm.nn import lora
from macllm.nn.info import ModelInfo
from macllm.nn.models import DecoderLM, EncoderLM
from macllm.weights.header import read_header

from . import peft

FIELD = "labels"
"""Field of mlx-lm's adapter_config.json: task, names and padding token of the head."""
_TASKS: dict[str, labels.Task] = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token"}
_OUTPUTS = ("score.weight", f"{peft.CLASSIFIER}.weight", f"{peft.CLASSIFIER}.out_proj.weight")


def record(info: ModelInfo) -> dict[str, Any]:
    """The field for a model's head; empty without one."""
    if info.labels is None:
        return {}
    task = "token" if info.labels.reads == "each" else "sequence"
    return {FIELD: {"task": task, "names": [*labels.names(info.config)], "padding": info.labels.padding}}


def peft_task(info: ModelInfo) -> str | None:
    """PEFT's task of a model with a head; None without one."""
    found = record(info)
    return next((name for name, task in _TASKS.items() if found and task == found[FIELD]["task"]), None)


def prepare(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> None:
    """Put the head that the adapter in `folder` was trained with on a model without one, in place.

    Its weights come with the adapter. Raises CheckpointError for an invalid record.
    """
    if not isinstance(model, DecoderLM | EncoderLM) or model.info.labels is not None or lora.changed(model):
        return
    if peft.holds_adapter(folder):
        task = _TASKS.get(str(config.get("task_type")))
        shapes = {name: entry.shape for name, entry in read_header(folder / peft.WEIGHTS).items()} if task else {}
        count = next((shape[0] for name, shape in shapes.items() if name.endswith(_OUTPUTS)), 0)
        if task and count:
            labels.put_labels(model, task, labels.names({"num_labels": count}))
        return
    found = config.get(FIELD)
    if found is None:
        return
    try:
        task, names = found["task"], [*map(str, found["names"])]
        if task not in _TASKS.values() or not names:
            raise ValueError("it has no task or no names")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{FIELD} of the adapter in {folder} are invalid", cause=str(error)) from error
    padding = found.get("padding")
    labels.put_labels(model, cast("labels.Task", task), names, padding=padding if isinstance(padding, int) else None)
