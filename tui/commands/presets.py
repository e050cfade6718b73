"""Presets of the configuration file: a system prompt and sampling values under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from macllm.chat.options import with_overrides
from macllm.chat.session import Session
from macllm.config.settings import ConfigFile, Preset, load, place, resolve
from macllm.errors import MacllmError, UsageError

from ..outcomes import Ask, Choice, Outcome, Question, Say
from .command import Command

_NONE = "none"
_SYSTEM_CHARS = 40


def _preset(session: Session, name: str) -> Outcome:
    """Apply a preset over the defaults of model, file and environment, in place of the settings until now."""
    config = load()
    if not name:
        return _list(config)
    preset = Preset(_NONE) if name == _NONE else config.preset(name)
    unset = {key: value for key, value in config.values.items() if key != "chat.preset"}
    found = resolve(replace(config, values=unset), {}, preset=None if name == _NONE else name)
    sampling = {key.partition(".")[2]: each.value for key, each in found.items() if key.startswith("sampling.")}
    session.sampling = with_overrides(session.engine.info.defaults, {"seed": session.sampling.seed, **sampling})
    if preset.system is not None:
        session.system = preset.system
    elif name == _NONE:
        session.system = found["chat.system"].value if "chat.system" in found else None
    session.preset = None if name == _NONE else preset
    return Say("No preset is in use." if name == _NONE else f"Preset {name}: {_summary(preset)}")


def _list(config: ConfigFile) -> Outcome:
    if not config.presets:
        table = "a table [presets.NAME] with system, temperature and so on"
        raise UsageError("No presets yet.", remedy=f"{table} in {place(config.path, None)}")
    choices = [Choice(f"{name}: {_summary(preset)}", f"/preset {name}") for name, preset in config.presets.items()]
    return Ask(Question("Which preset?", (*choices, Choice(_NONE, f"/preset {_NONE}"))))


def _summary(preset: Preset) -> str:
    values = [f"{name} {value}" for name, value in preset.sampling.items()]
    if preset.system is None:
        return ", ".join(values) or "no settings"
    line = " ".join(preset.system.split())
    return ", ".join([line if len(line) <= _SYSTEM_CHARS else f"{line[:_SYSTEM_CHARS]}…", *values])


def _names(session: Session | None, argument: str) -> Mapping[str, str]:
    try:
        return {name: _summary(preset) for name, preset in load().presets.items()} | {_NONE: ""}
    except MacllmError:
        return {}


COMMANDS = (
    Command(
        "preset",
        "[NAME | none]",
        "use the system prompt and sampling of a preset",
        _preset,
        idle=True,
        values=_names,
    ),
)
