"""Options of a chat, and opening a session with them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from macllm.config.settings import ConfigFile, Preset, config_path
from macllm.errors import MacllmError, UsageError
from macllm.generation.contract import Engine, OnStatus, Status
from macllm.generation.request import Done, Request, SamplingParams
from macllm.hub import speeds

from .conversation import Conversation
from .session import Session
from .store import Store

TRIAL = "macllm.doctor.quick:QuickTrial"
"""Trial of Metal kernels while the engine is idle."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of `macllm chat`. `sampling` holds the user's values; the model's defaults fill the rest."""

    model: str | None = None  # None: the bundled model
    adapter: str | None = None
    system: str | None = None
    seed: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None  # its values are in `system` and `sampling`, unless others come before them
    prompt: str | None = None
    plain: bool = False
    conversation: Conversation | None = None  # to go on with; None: a new one
    temporary: bool = False  # store nothing
    max_tokens: int | None = None  # None: to the end of the context
    verbose: bool = False
    theme: str = "auto"
    sidebar: bool = False  # shown from the start
    config: ConfigFile = field(default_factory=lambda: ConfigFile(config_path()))  # for keys

    def request(self) -> Request:
        """A request with the user's settings, to be checked before a model is loaded."""
        sampling = with_overrides(SamplingParams(), {"seed": self.seed, **self.sampling})
        return Request(max_tokens=self.max_tokens, sampling=sampling)

    @property
    def model_name(self) -> str:
        """The model's name to display before it is loaded."""
        return short_name(self.model or "maclet")


def short_name(model: str) -> str:
    """The last part of a model's name or folder, or of each of several adapters, for narrow displays."""
    return " + ".join(part.rstrip("/").rsplit("/", 1)[-1] or part for part in model.split(" + "))


def open_session(options: ChatOptions, on_status: OnStatus | None = None) -> Session:
    """Start the engine in its own process, wait for the model, and return the conversation.

    `on_status` is called in another thread with status messages of the engine.
    Raises: MacllmError if the model cannot be loaded.
    """
    from macllm.generation.engines.process import ProcessEngine

    engine = ProcessEngine(options.model or "maclet", options.adapter, trial=TRIAL, on_status=on_status)
    try:
        store = None if options.temporary else _open_store(on_status)  # while the engine loads
        conversation = options.conversation
        if conversation is not None and options.system is not None:
            conversation = replace(conversation, system=options.system)
        session = Session(
            engine,
            conversation=conversation,
            system=options.system,
            sampling=with_overrides(engine.info.defaults, {"seed": options.seed, **options.sampling}),
            max_tokens=options.max_tokens,
            journal=store,
        )
        if store is not None and options.conversation is not None:
            with suppress(MacllmError):  # reported when it is saved
                store.add(options.conversation)  # a fork is stored from the start
        session.preset = options.preset
        session.on_done = partial(_keep_speed, engine)
        return session
    except BaseException:
        engine.close()
        raise


def _keep_speed(engine: Engine, done: Done) -> None:
    """Keep the speed of a completion, and the memory that the engine may use, for lists of models."""
    tokens = done.usage.completion_tokens
    speeds.record(engine.info.model_name, done.timing.tokens_per_second(tokens), tokens)
    if sys.platform == "darwin" and speeds.load().memory_limit is None:
        speeds.record_machine(memory_limit=engine.usage().limit_bytes)


def _open_store(on_status: OnStatus | None) -> Store | None:
    """The store of conversations, which reports its errors as status; None if its file cannot be used."""

    def report(error: MacllmError) -> None:
        if on_status is not None:
            on_status(Status(str(error), transient=False))

    store = Store(on_error=report)
    try:
        store.open()
    except MacllmError as error:
        report(MacllmError(f"This chat is not stored. {error.message}", cause=error.cause, remedy=error.remedy))
        return None
    return store


def with_overrides(defaults: SamplingParams, overrides: Mapping[str, Any]) -> SamplingParams:
    """`defaults` with every override that is not None. Raises: UsageError for an unknown name."""
    known = {item.name for item in fields(SamplingParams)}
    for name in overrides:
        if name not in known:
            raise UsageError(f"Sampling has no setting {name!r}.", remedy=f"one of {', '.join(sorted(known))}")
    return replace(defaults, **{name: value for name, value in overrides.items() if value is not None})
