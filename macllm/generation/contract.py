"""The engine's contract: options, facts, completions and idle work. Imports no MLX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from macllm.errors import UsageError

from .request import Events, Request, SamplingParams
from .sampling.ranges import check_range, shown


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings of an engine, the same for all its completions. A wrong value raises UsageError."""

    kv_bits: int | None = None  # 4 or 8: keep keys and values quantized
    prefill_step: int = 512  # tokens of a prompt computed at once, at most
    prefix_bytes: int | None = None  # caches kept beside the newest one; None: a quarter of what the weights leave

    def __post_init__(self) -> None:
        if self.kv_bits is not None and (type(self.kv_bits) is not int or self.kv_bits not in (4, 8)):
            raise UsageError(f"kv_bits is {shown(self.kv_bits)}; it must be 4, 8 or None (not quantized)")
        check_range("prefill_step", self.prefill_step)
        if self.prefix_bytes is not None:
            check_range("prefix_bytes", self.prefix_bytes)


DEFAULT_OPTIONS = EngineOptions()


@dataclass(frozen=True)
class EngineInfo:
    """Facts about the engine's model."""

    model_name: str
    context_length: int | None  # tokens, prompt and completion together; None: no limit known
    vocab_size: int
    weights_bytes: int
    has_chat_template: bool
    defaults: SamplingParams
    adapter: str | None = None  # the active LoRA adapter, or several with weights; a request can leave it out
    kv_bytes_per_token: int | None = None  # by which a cache grows, layers with a window left out; None: unknown
    kv_window_bytes: int = 0  # of the layers with a window, once it is full
    kv_window_tokens: int = 0  # the longest window


@dataclass(frozen=True)
class MemoryUse:
    """MLX's memory: in use now, most since the last request began, and how much there should be at most."""

    active_bytes: int
    peak_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Status:
    """A status message from the engine, transient or persistent."""

    text: str  # "" ends a transient message
    transient: bool


OnStatus = Callable[[Status], object]


class CompletionEvents(Events, Protocol):
    """Events of one submitted completion. Any thread may cancel it, while another one waits for an event."""

    def cancel(self) -> None:
        """Stop after the current step: the events end with Done("cancelled"). No effect on ended events."""
        ...


class Engine(Protocol):
    """Completions in the order of submission. Each can be cancelled alone, queued or running."""

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises the error of loading."""
        ...

    def submit(self, request: Request) -> CompletionEvents:
        """Events of a completion, queued at once. Closing the iterator stops it after its current step."""
        ...

    def activate(self, adapter: str | None) -> None:
        """Make another adapter active for later requests, or several, as `a + b:0.5`, or none.

        The model is not loaded again. Waits until the completions submitted before it are over. Adapters used before
        are kept in memory as far as there is room. Raises the error of loading; the former adapter then stays active.
        """
        ...

    def usage(self) -> MemoryUse:
        """Memory now, also during a completion."""
        ...

    def close(self) -> None:
        """Release the model after the current step. Later calls raise UsageError."""
        ...


class IdleWork(Protocol):
    """Work that an engine does between completions, from the end of its first one on."""

    def resume(self) -> None:
        """Begin or go on, in a thread or a process of its own."""
        ...

    def pause(self) -> None:
        """Stop at once, because a completion waits. Called after each `resume`."""
        ...
