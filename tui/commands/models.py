"""Commands for models and adapters."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from functools import lru_cache

from macllm.chat.adapters import OFF, chosen_blend, known_adapters
from macllm.chat.model_columns import fit_text, size_text, status_text
from macllm.chat.models import UsableModel, chosen_model, usable_models
from macllm.chat.session import Session
from macllm.errors import ModelNotFoundError, UsageError
from macllm.hub.names import local_folder, parse_name

from ..outcomes import Activate, Open, Outcome, SwitchModel
from .command import Command

_PERIOD_SECONDS = 5.0
SCREEN = "models"
"""The screen with the list; its argument is the text of its filter, or a name to show."""


def _model(argument: str) -> Outcome:
    if not argument:
        return Open(SCREEN)
    if (folder := local_folder(argument)) is not None:
        return SwitchModel(str(folder))
    try:
        found = chosen_model(argument, usable_models())
    except ModelNotFoundError:
        if argument.count("/") != 1:
            raise
        return Open(SCREEN, str(parse_name(argument)))
    if found.problem is not None:
        raise UsageError(f"{found.title} cannot be used.", cause=found.problem, remedy="/model lists the others")
    return Open(SCREEN, found.name) if found.kind == "catalogue" else SwitchModel(found.name)


def _adapter(session: Session, argument: str) -> Outcome:
    if not argument:
        return Open(SCREEN, "adapters")
    listed = [] if argument in OFF else known_adapters(usable_models(), session.adapters)
    return Activate(chosen_blend(argument, listed))


@lru_cache(maxsize=1)
def _listed(period: int) -> tuple[UsableModel, ...]:
    """The list, read once in each period: completion asks at every key."""
    return tuple(usable_models())


def _models(session: Session | None, argument: str) -> Mapping[str, str]:
    """The usable models, those to download included, for completion."""
    listed = _listed(int(time.monotonic() / _PERIOD_SECONDS))
    usable = [model for model in listed if model.kind != "adapter" and model.problem is None]
    return {model.name: f"{status_text(model)}, {size_text(model)}, fits {fit_text(model)}" for model in usable}


def _adapters(session: Session | None, argument: str) -> Mapping[str, str]:
    """The usable adapters, for completion; after a name those to blend with it."""
    listed = _listed(int(time.monotonic() / _PERIOD_SECONDS))
    usable = [model for model in known_adapters(listed, session.adapters if session else ()) if model.problem is None]
    before = argument.rpartition(" ")[0]
    if before:
        return {f"{before} {shlex.quote(model.name)}": status_text(model) for model in usable}
    return {**{shlex.quote(model.name): status_text(model) for model in usable}, OFF[0]: "the model alone"}


COMMANDS = (
    Command(
        "model",
        "[NAME]",
        "choose, download or remove models",
        run_without_model=_model,
        idle=True,
        aliases=("models",),
        values=_models,
    ),
    Command(
        "adapter",
        "[NAME … | off]",
        "apply a LoRA adapter, several (a b:0.5), or none",
        _adapter,
        idle=True,
        aliases=("adapters",),
        values=_adapters,
    ),
)
