"""Columns of a list of models as text, for tables of the command line, the chat and its plain lines."""

from __future__ import annotations

from macllm.hub.catalogue import FIT_TOKENS
from macllm.units import bytes_text, short_count_text

from .models import UsableModel

_STATUS = {"bundled": "bundled", "cached": "on disk", "folder": "on disk, in place", "catalogue": "remote"}


def size_text(model: UsableModel) -> str:
    """The size on disk."""
    return bytes_text(model.size_bytes) if model.size_bytes else "-"


def context_text(model: UsableModel) -> str:
    """The longest context in tokens: 32k; "-" if not known."""
    tokens = model.shape.context_tokens
    if not tokens:
        return "-"
    # Lengths are powers of two, and people call 32,768 tokens 32k.
    return f"{tokens >> 10}k" if tokens >= 1024 and tokens % 1024 == 0 else short_count_text(tokens)


def fit_text(model: UsableModel, *, marks: bool = False) -> str:
    """The context that fits into memory: all, to 92k, 7.5 GB over; with `marks`, a sign in front."""
    found = model.fit
    if found is None:
        return "-"
    if found.over_bytes:
        mark, text = "✘", f"{bytes_text(found.over_bytes)} over"
    elif found.tokens is None:
        mark, text = "✔", "weights"
    elif found.whole:
        mark, text = "✔", "all"
    else:
        mark, text = "✔" if found.tokens >= FIT_TOKENS else "◐", f"to {short_count_text(found.tokens)}"
    return f"{mark} {text}" if marks else text


def speed_text(model: UsableModel) -> str:
    """Tokens a second: 61 measured, ~33 estimated, "-" if neither is known."""
    if model.speed is None:
        return "-"
    number = model.speed.tokens_per_second
    return f"{'' if model.speed.measured else '~'}{number:.{0 if number >= 9.95 else 1}f}"


def status_text(model: UsableModel) -> str:
    """The place of a usable model, the reason of an unusable one, the base of an adapter."""
    if model.problem is not None:
        return f"unfinished: {model.problem}" if model.unfinished else model.problem
    if model.kind == "adapter":
        return f"for {model.base}" if model.base else "for an unknown model"
    return _STATUS[model.kind]


def offer_text(model: UsableModel) -> str:
    """A recommended model in one line: size, speed if known, purpose."""
    speed = f", {speed_text(model)} tok/s" if model.speed else ""
    return f"{model.title}: {size_text(model)}{speed}; {model.use}"
