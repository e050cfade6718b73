"""`macllm doctor`: what macllm finds on this machine, for people and for bug reports."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from macllm.errors import UnsupportedMachineError, UsageError

from .output import Progress, bytes_text, say

PACKAGES = ("macllm", "mlx", "mlx-lm", "tokenizers", "sentencepiece", "textual", "huggingface-hub", "numpy")


@click.command("doctor")
@click.option("--build", is_flag=True, help="Compile the CPU kernels now and print where they are (Linux).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(build: bool, as_json: bool) -> None:
    """Say what macllm finds on this machine."""
    if build:
        path = _build()
        if not as_json:
            click.echo(path)
            return
    facts = {
        "versions": _versions(),
        "machine": _machine(),
        "mlx": _mlx(),
        "kernels": _kernels(),
        "paths": _paths(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for title, group in facts.items():
        click.echo(title)
        for name, value in group.items():
            click.echo(f"  {name.removesuffix('_bytes').replace('_', ' '):<18} {_shown(name, value)}")


def _build() -> str:
    """Compile the kernels unless they are there; their path."""
    from macllm.ops.cpu import build
    from macllm.ops.cpu.machine import wanted

    if sys.platform != "linux":
        raise UnsupportedMachineError("the CPU kernels are for Linux", remedy="on a Mac, MLX computes with Metal")
    if not wanted():
        raise UsageError("MACLLM_NATIVE=0 forbids the CPU kernels", remedy="unset MACLLM_NATIVE")
    try:
        there = build.whole(build.library())
        start = time.monotonic()
        with Progress("compiling", unit="steps") as progress:
            path = build.ensure(progress.update)
        took = "compiled before" if there else f"compiled in {time.monotonic() - start:.0f} s"
        say(f"{took}, for {build.instruction_set()}")
    except build.BuildError as error:
        raise UnsupportedMachineError(
            "the CPU kernels cannot be compiled", cause=str(error), remedy=error.remedy
        ) from error
    return str(path)


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
    }


def _mlx() -> dict[str, Any]:
    from macllm.ops.cpu import blas  # readies the machine's matrix products, before mlx is first used

    blas.install()
    import mlx.core as mx

    device = mx.default_device()
    facts: dict[str, Any] = {"backend": "Metal" if mx.metal.is_available() else "CPU", "device": str(device)}
    if mx.metal.is_available():
        info = mx.device_info()
        facts["chip"] = info.get("device_name")
        facts["recommended_working_set_bytes"] = info.get("max_recommended_working_set_size")
    facts["computes"] = "yes" if mx.sum(mx.arange(4)).item() == 6 else "no: 0 + 1 + 2 + 3 is not 6"
    return facts


def _kernels() -> dict[str, Any]:
    """What computes where MLX has no Metal: the BLAS under its products, and the kernels compiled for this machine."""
    if sys.platform != "linux":
        return {"used": "no: they are for Linux"}
    from macllm.ops import cpu
    from macllm.ops.cpu import blas, build
    from macllm.ops.cpu.machine import compute_threads, wanted

    matmul = blas.install()
    facts: dict[str, Any] = {
        "matmul": f"{matmul.name}, {matmul.threads} threads" + (f" ({matmul.reason})" if matmul.reason else ""),
        "used": "no: MACLLM_NATIVE=0",
        "threads": compute_threads(),
        "turned_off_by": "MACLLM_NATIVE=0",
    }
    try:
        facts |= {
            "compiler": build.compiler(),
            "flags": " ".join(build.flags()),
            "instruction_set": build.instruction_set(),
            "module": str(build.library()),
        }
        if wanted():
            facts["used"] = "not compiled yet: the first run does it, or macllm doctor --build"
            if not cpu.pending():
                facts["used"] = "yes" if cpu.available() else f"no: {cpu.reason()}"
    except build.BuildError as error:
        facts["used"] = f"no: {error}" + (f" ({error.remedy})" if error.remedy else "")
    return facts


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
