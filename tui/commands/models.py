"""Commands for models and adapters."""

from __future__ import annotations

from pathlib import Path

from macllm.chat.models import chosen_adapter, chosen_model, usable_models
from macllm.chat.session import Session
from macllm.errors import ModelNotFoundError, UsageError
from macllm.hub.names import local_folder, parse_name

from ..outcomes import Open, Outcome, SwitchModel
from .command import Command

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
    model = session.engine.info.model_name
    if not argument:
        return Open(SCREEN, "adapters")
    if argument == "none":
        return SwitchModel(model)
    if (Path(argument).expanduser() / "adapter_config.json").is_file():
        return SwitchModel(model, str(Path(argument).expanduser().absolute()))
    found = chosen_adapter(argument, usable_models())
    if found.problem is not None:
        raise UsageError(f"{found.title} cannot be used.", cause=found.problem, remedy="/adapter lists the others")
    return SwitchModel(model, found.name)


COMMANDS = (
    Command("model", "[NAME]", "choose, download or remove models", run_without_model=_model, idle=True),
    Command("adapter", "[NAME | none]", "apply a LoRA adapter, or none", _adapter, idle=True),
)
