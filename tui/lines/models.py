"""Choice and download of models in lines."""

from __future__ import annotations

import time
from collections.abc import Mapping

from macllm.chat.adapters import OFF, known_adapters
from macllm.chat.model_columns import context_text, fit_text, size_text, speed_text, status_text
from macllm.chat.models import UsableModel, usable_models
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.hub import DownloadProgress, download
from macllm.hub.blend import parse
from macllm.units import bytes_text

from ..outcomes import Choice, Question
from .narrator import Narrator

_PROGRESS_SECONDS = 5.0


def models_question(session_model: str = "") -> Question:
    """The usable models of this machine and of the catalogue, to choose from."""
    models = [model for model in usable_models() if model.kind != "adapter" and model.problem is None]
    return Question("Models:", tuple(Choice(_row(model, session_model), f"/model {model.name}") for model in models))


def adapters_question(session: Session) -> Question:
    """The usable adapters, with the weights of those in use. Raises: UsageError if there is none."""
    adapters = [model for model in known_adapters(usable_models(), session.adapters) if model.problem is None]
    if not adapters:
        raise UsageError("There is no adapter here.", remedy="macllm finetune --lora --data rows.jsonl makes one")
    weights = parse(session.adapter) if session.adapter else {}
    named = tuple(Choice(_adapter_row(model, weights), f"/adapter {model.name}") for model in adapters)
    none = "no adapter" if weights else "no adapter (in use)"
    return Question("Adapters; /adapter NAME NAME:0.5 blends:", (*named, Choice(none, f"/adapter {OFF[0]}")))


def _adapter_row(model: UsableModel, weights: Mapping[str, float]) -> str:
    weight = weights.get(model.name)
    use = "" if weight is None else " (in use)" if weight == 1 else f" (in use with weight {weight:g})"
    return f"{model.title}, {status_text(model)}{use}"


def _row(model: UsableModel, session_model: str) -> str:
    parts = [model.name, status_text(model), size_text(model)]
    fits = "" if model.fit is not None and model.fit.over_bytes else "fits "
    parts += [f"context {context_text(model)}", f"{fits}{fit_text(model)}", f"{speed_text(model)} tok/s"]
    known = ", ".join(part for part in parts if not part.startswith("-") and not part.endswith(" -"))
    return f"{known} (in use)" if model.name == session_model else known


def fetch(name: str, narrator: Narrator) -> None:
    """Download a model, or the rest of it, with a line of progress every 5 s. Raises: MacllmError."""
    reported: list[float] = []

    def report(progress: DownloadProgress) -> None:
        if not reported:
            size = bytes_text(progress.total_bytes)
            narrator.say(f"downloading {name}, {size}; Ctrl-C stops, and the same command goes on later")
            reported.append(time.monotonic())
        elif time.monotonic() - reported[-1] > _PROGRESS_SECONDS:
            reported.append(time.monotonic())
            narrator.say(f"{bytes_text(progress.done_bytes)} of {bytes_text(progress.total_bytes)}")

    download(name, progress=report)
