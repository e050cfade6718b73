"""Messages from the model's threads to the chat. No Textual in here."""

from __future__ import annotations

from dataclasses import dataclass

from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.contract import Status
from macllm.generation.request import Event


@dataclass(frozen=True)
class ModelReady:
    """The model is loaded, or has another adapter; with an error it has the former one."""

    session: Session
    error: MacllmError | None = None


@dataclass(frozen=True)
class ModelFailed:
    """The model could not be loaded."""

    error: MacllmError


@dataclass(frozen=True)
class EngineStatus:
    """The engine has a status message."""

    status: Status


@dataclass(frozen=True)
class TurnEvent:
    """The next event of the answer."""

    event: Event


@dataclass(frozen=True)
class TurnEnded:
    """The answer is over; `error` is None unless it failed."""

    error: MacllmError | None


ThreadMessage = ModelReady | ModelFailed | EngineStatus | TurnEvent | TurnEnded
