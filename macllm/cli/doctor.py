"""`macllm doctor`: what macllm finds on this machine, for people and for bug reports."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from .output import bytes_text

PACKAGES = ("macllm", "mlx", "mlx-lm", "tokenizers", "sentencepiece", "textual", "huggingface-hub", "numpy")


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(as_json: bool) -> None:
    """Say what macllm finds on this machine."""
    facts = {
        "versions": _versions(),
        "machine": _machine(),
        "mlx": _mlx(),
        "paths": _paths(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for title, group in facts.items():
        click.echo(title)
        for name, value in group.items():
            click.echo(f"  {name.removesuffix('_bytes').replace('_', ' '):<18} {_shown(name, value)}")


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    return bytes_text(value) if name.endswith("_bytes") and isinstance(value, int | float) else str(value)


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _machine() -> dict[str, Any]:
    system = (
        f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else f"{platform.system()} {platform.release()}"
    )
    return {
        "system": system,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "compiler": _compiler() or "none",
    }


def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


def _mlx() -> dict[str, Any]:
    from macllm.ops.cpu import blas  # readies the machine's matrix products, before mlx is first used

    matmul = blas.install()
    import mlx.core as mx

    device = mx.default_device()
    facts: dict[str, Any] = {"backend": "Metal" if mx.metal.is_available() else "CPU", "device": str(device)}
    if mx.metal.is_available():
        info = mx.device_info()
        facts["chip"] = info.get("device_name")
        facts["recommended_working_set_bytes"] = info.get("max_recommended_working_set_size")
    else:
        facts["matmul"] = f"{matmul.name}, {matmul.threads} threads" + (f" ({matmul.reason})" if matmul.reason else "")
        facts["native_kernels"] = _native_kernels()
    facts["computes"] = "yes" if mx.sum(mx.arange(4)).item() == 6 else "no: 0 + 1 + 2 + 3 is not 6"
    return facts


def _native_kernels() -> str:
    from macllm.ops import cpu

    if not cpu.built() and cpu.reason() is None:
        return "not compiled yet; the first run does it" if _compiler() else "not used: no C++ compiler is installed"
    return "ready" if cpu.available() else f"not used: {cpu.reason()}"


def _paths() -> dict[str, Any]:
    from macllm.hub import cache_folder
    from macllm.hub.names import endpoint, is_offline
    from macllm.ops.cpu.build import cache_folder as kernel_cache

    cache = cache_folder()
    nearest = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return {
        "model_cache": str(cache),
        "kernel_cache": str(kernel_cache()),
        "free_disk_bytes": shutil.disk_usage(nearest).free,
        "hub": "off" if is_offline() else endpoint(),
        "hub_token": "set" if os.environ.get("HF_TOKEN") else "not set",
    }
