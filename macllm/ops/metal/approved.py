"""Which kernels serve on this machine: those that `macllm doctor --kernels` has found right and faster than MLX's."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import plistlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from macllm.ops.cpu.build import cache_folder

from . import HERE

_SYSTEM = Path("/System/Library/CoreServices/SystemVersion.plist")


@dataclass(frozen=True)
class Kept:
    """What the doctor has decided here, by op, type and bucket, and why not where it was not."""

    decisions: Mapping[str, bool] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


_supposed: ContextVar[Kept | None] = ContextVar("supposed", default=None)


def bucket(size: int) -> str:
    """The sizes of an op for which one decision holds."""
    return "1" if size == 1 else "to 16" if size <= 16 else "to 1024" if size <= 1024 else "more"


def key(op: str, dtype: mx.Dtype, size: int) -> str:
    """What a decision is kept under."""
    return f"{op} {str(dtype).removeprefix('mlx.core.')} {bucket(size)}"


def is_approved(op: str, dtype: mx.Dtype, size: int) -> bool:
    """Whether the doctor has approved of an op's kernels here; MACLLM_METAL=1 and 0 are answers for all of them."""
    asked = os.environ.get("MACLLM_METAL")
    if asked in ("0", "1"):
        return asked == "1"
    found = _supposed.get() or kept()
    return found is not None and found.decisions.get(key(op, dtype, size)) is True


@contextmanager
def supposing(decided: Kept) -> Iterator[None]:
    """Let these decisions hold in this block."""
    token = _supposed.set(decided)
    try:
        yield
    finally:
        _supposed.reset(token)


def remember(decided: Kept) -> Path:
    """Keep the doctor's decisions for machines, systems, MLX and kernels like these; the file, whole or not there."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "decisions": dict(decided.decisions), "reasons": dict(decided.reasons)}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.", delete=False) as draft:
        try:
            json.dump(content, draft, indent=2)
            draft.flush()
            os.fsync(draft.fileno())
            Path(draft.name).replace(path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise
    kept.cache_clear()
    return path


@cache
def kept() -> Kept | None:
    """What has been decided here; None where the doctor has not run, or on another machine, system, MLX or kernels."""
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
        if content["machine"] != machine():
            return None
        found = Kept(content["decisions"], content["reasons"])
        whole = all(isinstance(one, bool) for one in found.decisions.values())
        return found if whole and all(isinstance(one, str) for one in found.reasons.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def machine() -> dict[str, Any]:
    """What the decisions hold for."""
    return {
        "chip": mx.device_info().get("device_name") if mx.metal.is_available() else platform.machine(),
        "system": _system_build(),
        "mlx": version("mlx"),
        "kernels": kernels_hash(),
    }


def kernels_hash() -> str:
    """Of all kernels' texts, and of how they are dispatched."""
    files = sorted([*HERE.glob("*.metal"), *HERE.glob("*.py")])
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:16]


def _system_build() -> str:
    """The system with its build: a new one compiles kernels anew, and maybe otherwise."""
    if sys.platform != "darwin":
        return f"{platform.system()} {platform.release()}"
    try:
        known = plistlib.loads(_SYSTEM.read_bytes())
        return f"macOS {known['ProductVersion']} {known['ProductBuildVersion']}"
    except (OSError, ValueError, KeyError):
        return platform.version()


def _path() -> Path:
    return cache_folder().parent / "metal.json"
