"""Rows of the list of models as lines of text that shrink with the width. No Textual in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from macllm.chat import model_columns as columns
from macllm.chat.models import UsableModel
from macllm.hub.catalogue import FIT_TOKENS
from macllm.hub.downloads import DownloadStatus
from macllm.units import bytes_text, count_text, duration_text
from macllm.visible import cells, fitted, unbroken

Part = Literal["all", "local", "adapters", "remote"]
_NAMED: dict[str, Part] = {"all": "all", "local": "local", "adapters": "adapters", "remote": "remote"}
PARTS: tuple[Part, ...] = tuple(_NAMED.values())
PART_LETTERS: dict[str, Part] = {"l": "local", "r": "remote", "a": "adapters"}
Order = Literal["listed", "size", "speed"]
ORDERS: tuple[Order, ...] = ("listed", "size", "speed")
GROUPS = {"local": "On this machine", "adapters": "Adapters", "remote": "Recommended, to download"}
NO_ADAPTER = "macllm finetune --lora makes an adapter; /adapter FOLDER takes one of another place"
_ALL_COLUMNS = 92  # cells; narrower lists leave out the kind of weights and the speed
_SOME_COLUMNS = 70  # narrower ones leave out the status
_FEW_COLUMNS = 60  # and those the context
_NAME_CELLS = 20
_BAR_CELLS = 10
_WORDS = {
    "running": "waiting for the hub",
    "pausing": "pausing",
    "paused": "paused",
    "cancelling": "cancelling",
    "cancelled": "cancelled",
    "failed": "failed",
    "done": "downloaded",
}


@dataclass(frozen=True)
class Column:
    """A column: its title, and its width in cells."""

    title: str
    width: int


def part_of(model: UsableModel) -> Part:
    """The part of the list to which a model belongs."""
    return "local" if model.is_local else "adapters" if model.kind == "adapter" else "remote"


def part_named(name: str) -> Part:
    """The part of the list of this name, else all of it."""
    return _NAMED.get(name, "all")


def filtered(models: Iterable[UsableModel], typed: str, part: Part = "all") -> list[UsableModel]:
    """The models of a part that contain every typed word."""
    words = typed.lower().split()
    found: list[UsableModel] = []
    for model in models:
        text = f"{model.name} {model.shape.family} {model.shape.quantization} {model.base} {model.use}".lower()
        if part in ("all", part_of(model)) and all(word in text for word in words):
            found.append(model)
    return found


def ordered(models: Sequence[UsableModel], order: Order) -> list[UsableModel]:
    """The models of each part in an order: as listed, the largest or the fastest first, unknown ones last."""

    def key(model: UsableModel) -> tuple[int, float]:
        speed = model.speed.tokens_per_second if model.speed is not None else 0.0
        value = {"listed": 0, "size": model.size_bytes, "speed": speed}[order]
        return list(GROUPS).index(part_of(model)), -value

    return sorted(models, key=key)


def title(part: Part, order: Order) -> str:
    """The title of the list."""
    return f"Models: {part}" if order == "listed" else f"Models: {part}, by {order}"


def too_large(model: UsableModel, models: Iterable[UsableModel]) -> str:
    """The reason against a model that does not fit, with the largest one that fits; else ""."""
    if model.fit is None or not model.fit.over_bytes:
        return ""
    usable = [each for each in models if each.kind != "adapter" and each.problem is None]
    fitting = [each for each in usable if each.fit is not None and (each.fit.tokens or 0) >= FIT_TOKENS]
    reason = f"{model.title} needs {bytes_text(model.fit.over_bytes)} more memory than there is"
    if not fitting:
        return f"{reason}."
    return f"{reason}; {max(fitting, key=lambda each: each.size_bytes).title} fits."


def layout(models: Sequence[UsableModel], width: int) -> list[Column]:
    """The columns that fit into `width` cells; the last one takes the rest."""
    name = max([cells(unbroken(model.title)) for model in models] + [_NAME_CELLS])
    made = [Column("name", name), Column("size", 8)]
    if width >= _ALL_COLUMNS:
        made.insert(1, Column("weights", 7))
    if width >= _FEW_COLUMNS:
        made.append(Column("context", 7))
    made.append(Column("fits", 14))
    if width >= _ALL_COLUMNS:
        made.append(Column("tok/s", 5))
    if width >= _SOME_COLUMNS:
        made.append(Column("status", 14))
    spare = width - sum(column.width + 2 for column in made) + 2
    if spare < 0:
        made[0] = Column("name", max(made[0].width + spare, 12))
    elif made[-1].title == "status":
        made[-1] = Column("status", made[-1].width + spare)
    return made


def heading(made: Sequence[Column]) -> str:
    """The titles of the columns."""
    return "  ".join(column.title[: column.width].ljust(column.width) for column in made).rstrip()


def line(model: UsableModel, made: Sequence[Column], download: DownloadStatus | None = None) -> str:
    """A model as one line. A download takes the place of the status, or of the fit in a narrow list."""
    shown = {column.title for column in made}
    texts = {
        "name": model.title,
        "weights": model.shape.quantization or "-",
        "size": columns.size_text(model),
        "context": columns.context_text(model),
        "fits": _fits(model, "status" not in shown, download),
        "tok/s": columns.speed_text(model),
        "status": columns.status_text(model),
    }
    if download is not None and download.state != "done":
        texts["status"] = progress(download, made[-1].width)
    return "  ".join(fitted(unbroken(texts[column.title]), column.width) for column in made).rstrip()


def progress(download: DownloadStatus, width: int = 80) -> str:
    """A download in at most `width` cells: a bar, its share, its rate and the time left, or its state."""
    if not download.total_bytes:
        return _WORDS[download.state]
    share = download.done_bytes / download.total_bytes
    filled = int(share * _BAR_CELLS)
    parts = [f"▕{'█' * filled}{' ' * (_BAR_CELLS - filled)}▏", f"{int(100 * share)} %"]
    if download.state != "running":
        parts.append(_WORDS[download.state])
    if download.seconds_left is not None:
        parts.append(f"{duration_text(download.seconds_left)} left")
    if download.bytes_per_second >= 1:
        parts.append(f"{bytes_text(download.bytes_per_second)}/s")
    while len(text := "  ".join(parts)) > width and len(parts) > 1:
        parts.pop(0 if len(parts) == 2 else -1)
    return text


def details(model: UsableModel, download: DownloadStatus | None = None) -> list[str]:
    """Two lines about a model: its name and origin, then why it cannot be used or what it is for."""
    facts = [unbroken(model.name)]
    if model.licence:
        facts.append(model.licence)
    if model.shape.layers:
        facts.append(f"{model.shape.family}, {model.shape.layers} layers")
    if model.commit:
        facts.append(f"revision {model.commit[:7]}")
    return [" · ".join(facts), unbroken(_about(model, download))]


def _about(model: UsableModel, download: DownloadStatus | None) -> str:
    if download is not None and download.error is not None:
        error = download.error
        return " · ".join(text for text in (error.message, error.cause, "g tries again") if text)
    if download is not None and download.state != "done":
        return progress(download)
    if model.unfinished:
        return f"its download is not finished: {model.problem}; g goes on"
    if model.problem is not None:
        return f"cannot be used: {model.problem}"
    if model.kind == "adapter":
        return columns.status_text(model)
    parts = [model.use] if model.use else []
    if model.fit is not None:
        parts.append(_fit_in_words(model))
    if model.speed is not None:
        how = "measured here" if model.speed.measured else "estimated from the memory bandwidth"
        parts.append(f"{columns.speed_text(model)} tokens a second, {how}")
    return " · ".join(parts)


def _fit_in_words(model: UsableModel) -> str:
    assert model.fit is not None
    if model.fit.over_bytes:
        return f"needs {bytes_text(model.fit.over_bytes)} more memory than there is"
    if model.fit.tokens is None:
        return "its weights fit into memory"
    if model.fit.whole:
        return "its whole context fits into memory"
    return f"{count_text(model.fit.tokens)} tokens of context fit into memory"


def _fits(model: UsableModel, narrow: bool, download: DownloadStatus | None) -> str:
    if narrow and download is not None and download.state != "done":
        share = f" {100 * download.done_bytes // download.total_bytes} %" if download.total_bytes else ""
        return f"{'getting' if download.state == 'running' else _WORDS[download.state]}{share}"
    if narrow and model.problem is not None:
        return "◐ unfinished" if model.unfinished else "✘ unusable"
    return columns.fit_text(model, marks=True)
