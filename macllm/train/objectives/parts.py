"""The parts of a model that objectives are made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mlx.nn as nn

    from macllm.text.tokenizer import Tokenizer


class Parts(NamedTuple):
    """A model, its tokenizer, and the labels of its head in order; () without one for labels."""

    model: nn.Module
    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
