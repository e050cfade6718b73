"""Speeds measured on this machine: tokens a second by model, and memory bandwidth.

They are kept in the state folder. An estimate needs a bandwidth that `macllm bench` measured here; none is assumed.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macllm.child import log_folder
from macllm.files import read_json, write_json

_SHORTEST = 8  # tokens of an answer that says something about speed


@dataclass(frozen=True)
class ModelSpeed:
    """Tokens a second; an estimate unless `measured`."""

    tokens_per_second: float
    measured: bool


@dataclass(frozen=True)
class Measurements:
    """All that was measured on this machine. `bandwidth` is in bytes a second."""

    tokens_per_second: Mapping[str, float]
    bandwidth: float | None = None
    memory_limit: int | None = None

    def speed(self, name: str, bytes_per_token: float | None) -> ModelSpeed | None:
        """The speed of a model, measured or estimated from the weights read for a token; None if not known."""
        if (measured := self.tokens_per_second.get(name)) is not None:
            return ModelSpeed(measured, True)
        if self.bandwidth is None or not bytes_per_token:
            return None
        return ModelSpeed(self.bandwidth / bytes_per_token, False)


def state_folder() -> Path:
    """Folder of macllm's state: $MACLLM_HOME, else in XDG's state folder."""
    return log_folder().parent


def load() -> Measurements:
    """The measurements of this machine; none if the file is missing or damaged."""
    own = _machine(_read())
    speeds = {str(name): _number(value.get("tokens_per_second")) for name, value in _named(own, "models").items()}
    limit = _number(own.get("memory_limit"))
    return Measurements(
        {name: speed for name, speed in speeds.items() if speed is not None},
        _number(own.get("bandwidth")),
        int(limit) if limit else None,
    )


def record(name: str, tokens_per_second: float, tokens: int) -> None:
    """Keep the speed of an answer of `tokens` tokens.

    Short answers and files that cannot be written are ignored.
    """
    if tokens < _SHORTEST or not 0 < tokens_per_second < math.inf:
        return
    kept = {
        "tokens_per_second": round(tokens_per_second, 2),
        "tokens": tokens,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _change(lambda own: own.setdefault("models", {}).update({name: kept}))


def record_machine(*, bandwidth: float | None = None, memory_limit: int | None = None) -> None:
    """Keep the measured memory bandwidth in bytes a second, and the memory that MLX may use in bytes."""
    found = {"bandwidth": bandwidth, "memory_limit": memory_limit}
    _change(lambda own: own.update({key: value for key, value in found.items() if value}))


def _change(change: Any) -> None:
    everything = _read()
    own = everything["machines"].setdefault(_machine_name(), {})
    if not isinstance(own.get("models", {}), dict):
        own["models"] = {}
    change(own)
    # Two chats that end an answer at once: the later one wins, which loses one measurement.
    with suppress(OSError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(), everything)


def _read() -> dict[str, Any]:
    try:
        everything = read_json(_path())
        machines = everything["machines"]
        whole = {str(name): dict(value) for name, value in machines.items() if isinstance(value, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = {}
    return {"version": 1, "machines": whole}


def _machine(everything: Mapping[str, Any]) -> Mapping[str, Any]:
    return everything["machines"].get(_machine_name(), {})


def _named(own: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    found = own.get(key)
    return (
        {name: value for name, value in found.items() if isinstance(value, Mapping)}
        if isinstance(found, Mapping)
        else {}
    )


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if good else None  # type: ignore[arg-type]


def _machine_name() -> str:
    """A name for this machine that stays when it is renamed: a home may be shared by several."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory} GiB"


def _path() -> Path:
    return state_folder() / "speeds.json"
