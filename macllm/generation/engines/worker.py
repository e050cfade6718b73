"""A model, its tokenizer, adapters and caches of conversations, for the thread that owns them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm.adapter import attach_blend
from macllm.hub.blend import parse

from ..completion import run_steps
from ..contract import EngineInfo, EngineOptions, MemoryUse
from ..forecast import kv_bytes
from ..prefix import PrefixCache
from ..request import Event, Request
from ..sampling.defaults import default_sampling

if TYPE_CHECKING:
    from macllm.nn.protocol import LanguageModel
    from macllm.text.tokenizer import Tokenizer


class Worker:
    """Answers an engine's calls, all on one thread."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        model_name: str,
        options: EngineOptions,
        adapter: str | None = None,
    ) -> None:
        self._model, self._tokenizer, self._options = model, tokenizer, options
        self._model_name = model_name
        self.adapter = adapter  # the active one; `activate` changes it
        # lazy arrays can be computed by the thread that made them only, and weights are cheapest to wait for now
        mx.eval(model.parameters())
        left = max(0, memory_use().limit_bytes - self._weights_bytes())  # by the weights
        self._prefix = PrefixCache(left // 4 if options.prefix_bytes is None else options.prefix_bytes)
        self._kept_bytes = left // 16

    def info(self) -> EngineInfo:
        """The model."""
        growth, windows = self._kv_bytes()
        return EngineInfo(
            model_name=self._model_name,
            context_length=self._model.info.context_length,
            vocab_size=self._model.info.vocab_size or self._tokenizer.vocab_size,
            weights_bytes=self._weights_bytes(),
            has_chat_template=self._tokenizer.chat_template is not None,
            defaults=default_sampling(self._model.info),
            adapter=self.adapter,
            kv_bytes_per_token=growth,
            kv_window_bytes=windows,
            kv_window_tokens=max((layer.window or 0 for layer in self._model.info.kv_layers), default=0),
        )

    def run(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[tuple[Event, ...]]:
        """Events of a completion, step by step. Reuses the caches of earlier ones as far as the prompts agree."""
        return run_steps(self._model, self._tokenizer, request, self._options, prefix=self._prefix, cancelled=cancelled)

    def activate(self, adapter: str | None) -> None:
        """Make another adapter active, or several, or none. Raises as `macllm.adapter.attach_blend`."""
        blend = {} if adapter is None else parse(adapter)
        attach_blend(cast(nn.Module, self._model), blend, keep_bytes=self._kept_bytes)
        self.adapter = adapter

    def _weights_bytes(self) -> int:
        arrays: list[tuple[str, Any]] = tree_flatten(self._model.parameters())  # type: ignore[assignment]
        return sum(array.nbytes for _, array in arrays)

    def _kv_bytes(self) -> tuple[int | None, int]:
        """Bytes by which a cache grows with each token, None if unknown, and those of full windows."""
        info = self._model.info
        if info.kind != "decoder" or not info.kv_layers:
            return None, 0
        number = self._model.hidden(mx.zeros((1, 1), dtype=mx.int32)).dtype.size  # lazy: nothing is computed
        return kv_bytes(info.kv_layers, number, self._options.kv_bits)


def memory_use() -> MemoryUse:
    """MLX's memory; the limit is the GPU's recommended working set, else the machine's memory."""
    limit = mx.device_info().get("max_recommended_working_set_size") or _physical_bytes()
    return MemoryUse(mx.get_active_memory(), mx.get_peak_memory(), int(limit))


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
