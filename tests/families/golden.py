"""Recorded checkpoints: models for tests without transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.checkpoint import assemble
from macllm.nn.models import Model
from macllm.weights.safetensors import save_folder
from tests.families.oracles import tensor

FOLDER = Path(__file__).parent / "golden"
EVERY = 3


@dataclass(frozen=True)
class Golden:
    """transformers' outputs for a case."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    logits: np.ndarray  # (B, L, ceil(V / EVERY)); 0 at padding

    def tensors(self) -> dict[str, mx.array]:
        """The tensors of the checkpoint."""
        return {name: mx.array(tensor(name, shape)) for name, shape in self.shapes.items()}

    def write(self, folder: Path) -> Path:
        """Write the checkpoint into `folder`, and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_folder(self.tensors(), folder, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder

    def model(self) -> Model:
        """Our model with the checkpoint's weights."""
        return assemble(self.config, self.tensors())


@cache
def golden(name: str) -> Golden:
    """The recorded outputs of a case."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        about = json.loads(str(stored["about"]))
        shapes = {key: tuple(shape) for key, shape in about["tensors"].items()}
        return Golden(about["config"], shapes, stored["logits"])


@cache
def shared_model(name: str) -> Model:
    """Our model of a case, built once, for tests that do not change it."""
    return golden(name).model()
