"""The engine's contract: what it is asked, what it answers, and what works beside it. No MLX in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .request import Events, Request, SamplingParams


@dataclass(frozen=True)
class EngineInfo:
    """Facts about the engine's model."""

    model_name: str
    context_length: int | None  # tokens, prompt and completion together; None: no limit known
    vocab_size: int
    weights_bytes: int
    has_chat_template: bool
    defaults: SamplingParams


@dataclass(frozen=True)
class MemoryUse:
    """MLX's memory: in use now, most since the last request began, and how much there should be at most."""

    active_bytes: int
    peak_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class News:
    """A status message from the engine, transient or persistent."""

    text: str  # in passing, "" is the end of it
    passing: bool


Tell = Callable[[News], object]


class Engine(Protocol):
    """Makes one completion at a time; a second request waits for the first."""

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises what loading raised."""
        ...

    def submit(self, request: Request) -> Events:
        """Events of the completion, which begins at once. Closing the iterator stops it after the current step."""
        ...

    def usage(self) -> MemoryUse:
        """Memory, at any moment."""
        ...

    def cancel(self) -> None:
        """Stop what is being made after the current step; its events end with Done("cancelled")."""
        ...

    def close(self) -> None:
        """Give the model up, after the current step. Calls after this raise UsageError."""
        ...


class IdleWork(Protocol):
    """Work that an engine has done while nobody waits for it, once it has made a completion."""

    def resume(self) -> None:
        """Begin or go on, in a thread or a process of its own."""
        ...

    def pause(self) -> None:
        """Stop at once: somebody waits. Called after each `resume`."""
        ...
