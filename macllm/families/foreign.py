"""Models that no family of ours reads, run by mlx-lm's own classes behind the same protocol."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import CheckpointError, MacllmError, UsageError
from macllm.nn.info import ModelInfo

log = logging.getLogger("macllm")


class ForeignLM(nn.Module):
    """A causal language model of mlx-lm. Its head cannot be told from its body: `hidden` gives logits already."""

    def __init__(self, model: nn.Module, info: ModelInfo):
        super().__init__()
        self.model, self.info = model, info

    def __call__(
        self, tokens: mx.array, cache: ForeignCache | None = None, lengths: mx.array | None = None
    ) -> mx.array:
        """Logits of the next token: (B, L) -> (B, L, V). Rows may be padded on the right."""
        if cache is None:
            return self.model(tokens)
        cache.offset += tokens.shape[1]
        return self.model(tokens, cache=cache.layers)

    hidden = __call__

    def logits(self, hidden: mx.array) -> mx.array:
        """What `hidden` gave."""
        return hidden

    def make_cache(
        self,
        max_context: int | None = None,
        kv_bits: int | None = None,
        left_padding: Sequence[int] | None = None,
    ) -> ForeignCache:
        """An empty cache. Raises UsageError for what mlx-lm's caches of any model cannot do."""
        from mlx_lm.models.cache import make_prompt_cache

        if kv_bits is not None:
            raise UsageError("a quantized cache needs a model of a known family", remedy="leave out kv_bits")
        if left_padding is not None and any(left_padding):
            raise UsageError("padded rows need a model of a known family", remedy="rows one by one")
        return ForeignCache(make_prompt_cache(self.model), max_context)


@dataclass
class ForeignCache:
    """mlx-lm's caches, one a layer, behind our protocol."""

    layers: list[Any]
    max_context: int | None = None
    offset: int = 0

    @property
    def trimmable(self) -> int:
        """How many of the newest slots `trim` can take back."""
        from mlx_lm.models.cache import can_trim_prompt_cache

        return self.offset if can_trim_prompt_cache(self.layers) else 0

    @property
    def nbytes(self) -> int:
        """Bytes reserved in all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate so that nothing of this cache is pending."""
        return [layer.state for layer in self.layers]

    def trim(self, n: int) -> None:
        """Forget the newest `n` slots. Raises MacllmError when these caches cannot."""
        from mlx_lm.models.cache import trim_prompt_cache

        if n > self.trimmable:
            raise MacllmError(f"cannot take back {n} tokens from this cache", remedy="compute it again with a new one")
        if n:
            trim_prompt_cache(self.layers, n)
        self.offset -= n


def load_foreign(folder: Path, config: dict[str, Any]) -> ForeignLM:
    """The model of a folder whose `model_type` only mlx-lm knows; says so in the log."""
    kind = str(config.get("model_type"))
    log.warning("%s is not a family of macllm's: mlx-lm's class runs it, with stock kernels", kind)
    from mlx_lm.utils import load_model

    try:
        model, _ = load_model(folder, lazy=False, strict=True)
    except (ValueError, FileNotFoundError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"model_type {kind!r} is known neither to macllm nor, as this checkpoint has it, to mlx-lm",
            cause=str(error).splitlines()[0],
            remedy="macllm models ls, for those that are here",
        ) from error
    return ForeignLM(model, ModelInfo(context_length=config.get("max_position_embeddings")))
