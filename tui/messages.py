"""What threads and widgets tell the chat screen."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.contract import News
from macllm.generation.request import Event


@dataclass
class ModelReady(Message):
    """The model is loaded."""

    session: Session


@dataclass
class ModelFailed(Message):
    """The model could not be loaded."""

    error: MacllmError


@dataclass
class EngineNews(Message):
    """The engine says something of itself."""

    news: News


@dataclass
class TurnEvent(Message):
    """The answer went on."""

    event: Event


@dataclass
class TurnEnded(Message):
    """The answer is over; `error` is None unless it failed."""

    error: MacllmError | None


@dataclass
class PromptSubmitted(Message):
    """The user sent what was typed."""

    text: str


@dataclass
class PromptChanged(Message):
    """The user typed."""

    text: str
