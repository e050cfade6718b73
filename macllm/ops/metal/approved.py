"""Which kernels serve on this machine: those that `macllm doctor --kernels` has found right and faster than MLX's own."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from macllm.ops.cpu.build import cache_folder

from . import HERE


def bucket(size: int) -> str:
    """The sizes of an op for which one decision holds."""
    return "1" if size == 1 else "to 16" if size <= 16 else "to 1024" if size <= 1024 else "more"


def is_approved(op: str, dtype: mx.Dtype, size: int) -> bool:
    """Whether the doctor has approved of an op's kernels here; MACLLM_METAL=1 and 0 are answers for all of them."""
    asked = os.environ.get("MACLLM_METAL")
    if asked in ("0", "1"):
        return asked == "1"
    return _decisions().get(f"{op} {str(dtype).removeprefix('mlx.core.')} {bucket(size)}") is True


def remember(decisions: dict[str, bool]) -> Path:
    """Keep the doctor's decisions, by op and dtype, for machines, systems, MLX and kernels like these."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
        json.dump({"machine": machine(), "decisions": decisions}, draft, indent=2)
    Path(draft.name).replace(path)
    _decisions.cache_clear()
    return path


def machine() -> dict[str, Any]:
    """What the decisions hold for."""
    return {
        "chip": mx.device_info().get("device_name") if mx.metal.is_available() else platform.machine(),
        "system": platform.mac_ver()[0] or platform.release(),
        "build": platform.version(),
        "mlx": version("mlx"),
        "kernels": kernels_hash(),
    }


@cache
def kernels_hash() -> str:
    """Of all kernels' texts."""
    content = b"".join(path.name.encode() + path.read_bytes() for path in sorted(HERE.glob("*.metal")))
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def _decisions() -> dict[str, bool]:
    try:
        kept = json.loads(_path().read_text())
        return kept["decisions"] if kept["machine"] == machine() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _path() -> Path:
    return cache_folder().parent / "metal.json"
