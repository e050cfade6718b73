"""Heads that classify, as objectives need them: their labels, and a new one on a model without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import mlx.nn as nn

from macllm.errors import DataError
from macllm.families import labels
from macllm.nn.info import ModelInfo
from macllm.nn.models import DecoderLM, EncoderLM
from macllm.text.tokenizer import Tokenizer

from . import data, rows
from .config import FinetuneConfig
from .config.objective import OBJECTIVES
from .rows import Label, PlainText, Row, TaggedWords, label_name

log = logging.getLogger("macllm")

_REWARD = ("reward",)


def names_for(config: FinetuneConfig, own: Sequence[str] = ()) -> tuple[str, ...]:
    """The labels of the head that the objective trains; () for an objective without such a head.

    They are those of the rows, sorted, whole numbers by size; if the model's `own` are all that and more, these.
    Raises DataError for rows with fewer than two.
    """
    if OBJECTIVES[config.objective].head is None:
        return ()
    if config.objective == "reward":
        return _REWARD
    train, valid = (_found(source, config) for source in data.sources(config))
    found = train | valid
    if own and found <= set(own):
        return tuple(own)
    if len(found) < 2:
        raise DataError(
            f"the rows have {'one label only' if found else 'no labels'}",
            cause=f"all have {found.pop()!r}" if found else "",
            remedy='rows of {"text": ..., "label": ...}, or for objective = tag of {"words": [...], "tags": [...]}',
        )
    if unseen := sorted(valid - train):
        log.warning("only the validation rows have the labels %s, which cannot be learned", ", ".join(unseen[:8]))
    try:
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(found))


def _found(source: rows.Source | None, config: FinetuneConfig) -> set[str]:
    """The names of the labels in rows."""
    read = [] if source is None else rows.read(source, columns=config.columns)
    return {label_name(label) for row in read for label in _labels(row, config)}


def _labels(row: Row, config: FinetuneConfig) -> Sequence[Label]:
    """The labels of a row that the objective learns."""
    match config.objective, row:
        case "tag", TaggedWords():
            return row.tags
        case "classify", PlainText() if row.label is not None:
            return (row.label,)
    return ()


def prepare(model: nn.Module, tokenizer: Tokenizer, config: FinetuneConfig) -> tuple[str, ...]:
    """Give the model the head that the objective trains, in place, unless it has it; the labels in order.

    () for an objective without such a head. Raises UsageError for a family without one, and as `names_for`.
    """
    task = OBJECTIVES[config.objective].head
    if task is None:
        return ()
    labels.check_support(cast(ModelInfo, model.info).config, task)
    model = cast("DecoderLM | EncoderLM", model)  # those of families with such a head
    head, own = model.info.labels, ()
    if head is not None and (head.reads == "each") is (task == "token"):
        own = labels.names(model.info.config)
    names = names_for(config, own)
    if head is None or (names != own and not (config.objective == "reward" and len(own) == 1)):
        labels.put_labels(model, task, names, padding=tokenizer.pad_token_id, seed=config.seed)
    return names


def modules(model: nn.Module) -> tuple[str, ...]:
    """Our names of the modules of the head that classifies, with a pooler that it reads; () without one."""
    if not isinstance(model, DecoderLM | EncoderLM) or model.info.labels is None:
        return ()
    pooler = ("pooler",) if model.info.labels.reads == "pooled" else ()
    return ("labels.proj", *(["labels.dense"] if model.info.labels.dense else []), *pooler)
