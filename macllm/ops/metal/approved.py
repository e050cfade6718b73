"""Decisions on Metal kernels: those that tests on this machine found correct and faster than MLX's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import plistlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from macllm.files import read_json, write_json
from macllm.ops.cpu.build import cache_folder

from . import HERE

_SYSTEM = Path("/System/Library/CoreServices/SystemVersion.plist")


@dataclass(frozen=True)
class Decisions:
    """Decisions by op, type and bucket, with the reason for each rejected kernel.

    Those named in `quick` are from a quick trial; the whole test overrides them.
    """

    decisions: Mapping[str, bool] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    quick: frozenset[str] = frozenset()


_override: ContextVar[Decisions | None] = ContextVar("override", default=None)


def bucket(size: int) -> str:
    """The range of sizes of an op that share a decision."""
    return "1" if size == 1 else "to 16" if size <= 16 else "to 1024" if size <= 1024 else "more"


def key(op: str, dtype: mx.Dtype, size: int) -> str:
    """Key of a decision."""
    return f"{op} {str(dtype).removeprefix('mlx.core.')} {bucket(size)}"


def decision(op: str, dtype: mx.Dtype, size: int) -> bool | None:
    """The decision on an op's kernels; None if undecided. MACLLM_METAL=1 or 0 overrides all."""
    asked = os.environ.get("MACLLM_METAL")
    if asked in ("0", "1"):
        return asked == "1"
    found = _override.get() or load()
    return None if found is None else found.decisions.get(key(op, dtype, size))


@contextmanager
def override(decided: Decisions) -> Iterator[None]:
    """Use these decisions in this block."""
    token = _override.set(decided)
    try:
        yield
    finally:
        _override.reset(token)


def save(decided: Decisions) -> Path:
    """Save the whole test's decisions for this machine, system, MLX and kernels; returns the file."""
    path = _write(decided)
    load.cache_clear()
    return path


def add(found: Decisions) -> Path:
    """Add decisions of a quick trial to the saved ones; those of the whole test are kept.

    They apply in this process after `load.cache_clear`, which is to be called between completions.
    """
    before = _read() or Decisions()
    whole = {name: used for name, used in before.decisions.items() if name not in before.quick}
    decisions = {**before.decisions, **found.decisions, **whole}
    reasons = {**before.reasons, **found.reasons}
    against = {name: reasons[name] for name, used in decisions.items() if not used and name in reasons}
    return _write(Decisions(decisions, against, frozenset(decisions.keys() - whole.keys())))


@contextmanager
def alone(*, wait: bool) -> Iterator[bool]:
    """Lock the timing of kernels on this machine; yields False if another process holds it, unless `wait`."""
    path = _path().with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@cache
def load() -> Decisions | None:
    """Saved decisions; None without any, or if the machine, system, MLX or kernels differ."""
    return _read()


def _read() -> Decisions | None:
    try:
        content = read_json(_path())
        if content["machine"] != machine():
            return None
        quick = content["quick"]
        found = Decisions(content["decisions"], content["reasons"], frozenset(quick))
        texts = [*found.reasons.values(), *quick]
        whole = all(isinstance(one, bool) for one in found.decisions.values()) and isinstance(quick, list)
        return found if whole and all(isinstance(one, str) for one in texts) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(decided: Decisions) -> Path:
    """Write the file atomically."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "decisions": dict(decided.decisions),
        "reasons": dict(decided.reasons),
        "quick": sorted(decided.quick),
    }
    write_json(path, content)
    return path


def machine() -> dict[str, Any]:
    """Chip, system, MLX and kernels, on which decisions depend."""
    return {
        "chip": mx.device_info().get("device_name") if mx.metal.is_available() else platform.machine(),
        "system": _system_build(),
        "mlx": version("mlx"),
        "kernels": kernels_hash(),
    }


def kernels_hash() -> str:
    """Hash of all kernels' sources and of their launchers."""
    files = sorted([*HERE.rglob("*.metal"), *HERE.rglob("*.py")])
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:16]


def _system_build() -> str:
    """The system with its build, since another build may compile kernels differently."""
    if sys.platform != "darwin":
        return f"{platform.system()} {platform.release()}"
    try:
        known = plistlib.loads(_SYSTEM.read_bytes())
        return f"macOS {known['ProductVersion']} {known['ProductBuildVersion']}"
    except (OSError, ValueError, KeyError):
        return platform.version()


def _path() -> Path:
    return cache_folder().parent / "metal.json"
