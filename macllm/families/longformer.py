"""Longformer: RoBERTa with sliding windows and global tokens. arXiv:2004.05150."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from macllm.errors import CheckpointError
from macllm.nn.spec import EncoderSpec, LayerSpec, Local, WindowGlobalSpec
from macllm.weights.keymap import KeyMap, Rule

from . import roberta
from .config import Config
from .defaults import whole


def spec(config: Config) -> EncoderSpec:
    """The spec that `config` describes."""
    base = roberta.spec(config)
    layers, window = base.encoder.layers, config.get("attention_window", 512)
    windows = list(window) if isinstance(window, list | tuple) else [window] * len(layers)
    if len(windows) != len(layers):
        raise CheckpointError(f"attention_window lists {len(windows)} layers, but num_hidden_layers is {len(layers)}")
    return replace(base, encoder=replace(base.encoder, layers=tuple(map(_layer, layers, windows))))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    base, own = roberta.keys(config, "longformer"), "encoder.layers.{i}.mixer."
    theirs = "longformer.encoder.layer.{i}.attention.self."
    rules = (Rule(f"{theirs}{part}_global.*", f"{own}{part[0]}_global.*") for part in ("query", "key", "value"))
    return replace(base, rules=(*base.rules, *rules))


def _layer(layer: LayerSpec, window: int) -> LayerSpec:
    width = whole("attention_window", window)
    if width < 2 or width % 2:
        raise CheckpointError(f"attention_window of config.json has {width}; it must be even and above 0")
    attention: dict[str, Any] = vars(layer.mixer) | {"mask": Local(width // 2 + 1)}
    return replace(layer, mixer=WindowGlobalSpec(**attention))
