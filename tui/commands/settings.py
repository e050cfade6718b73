"""Commands for settings of sampling."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, replace

from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.generation.request import Request, SamplingParams
from macllm.generation.sampling import defaults

from ..outcomes import Outcome, Say
from .command import Command

SETTINGS = (
    "max_tokens",
    *(item.name for item in fields(SamplingParams) if item.default is None or isinstance(item.default, int | float)),
)


def _set(session: Session, argument: str) -> Outcome:
    if not argument:
        return Say("\n".join(f"{name} = {_shown(session, name)}" for name in SETTINGS))
    name, _, value = re.sub(r"\s*=\s*|\s+", " ", argument, count=1).partition(" ")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        remedy = f"/set {near[0]} …" if near else "/set lists all settings"
        raise UsageError(f"Unknown setting {name!r}.", remedy=remedy)
    if not value:
        return Say(f"{name} = {_shown(session, name)}")
    number = _number(name, value)
    if name == "max_tokens":
        defaults.check(Request(prompt=(), max_tokens=1 if number is None else int(number)))
        session.max_tokens = None if number is None else int(number)
    else:
        sampling = replace(session.sampling, **{name: number})
        defaults.check(Request(prompt=(), sampling=sampling))
        session.sampling = sampling
    return Say(f"{name} = {_shown(session, name)}")


def _shown(session: Session, name: str) -> str:
    value = session.max_tokens if name == "max_tokens" else getattr(session.sampling, name)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(name: str, text: str) -> float | int | None:
    """The value of a setting, parsed from `text`. Raises: UsageError if `text` is not a number."""
    if text == "none" and name in ("max_tokens", "seed"):
        return None
    whole = name in ("max_tokens", "seed") or isinstance(getattr(SamplingParams, name), int)
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {kind}.", cause=f"{text!r} is not {kind}") from None


def _names(session: Session | None, argument: str) -> dict[str, str]:
    return {f"{name} ": "" if session is None else _shown(session, name) for name in SETTINGS}


COMMANDS = (
    Command(
        "set",
        "[NAME VALUE]",
        "show or change settings: temperature, top_p, seed, max_tokens, …",
        _set,
        values=_names,
    ),
)
