"""Facts of this machine: versions, memory, disk, terminal, MLX, and the kernels in use."""

from __future__ import annotations

import locale
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("macllm", "mlx", "mlx-lm", "tokenizers", "sentencepiece", "textual", "huggingface-hub", "numpy")
TRY_KERNELS = "macllm doctor --kernels"
NOT_TRIED = (
    "no: not tested on this system with these versions. Chat tests its model's kernels after an answer; "
    f"{TRY_KERNELS} tests all kernels, in some minutes. MACLLM_METAL=0 turns kernels and tests off"
)
NOT_COMPILED = "not compiled yet: compiled in the background of the first answers, or by macllm doctor --build"

LOW_DISK_BYTES = 2 << 30

Facts = dict[str, Any]


def facts() -> dict[str, Facts]:
    """All facts, by title."""
    from macllm.ops.cpu import blas

    blas.install()  # before MLX is first used
    return {
        "versions": _versions(),
        "machine": machine(),
        "memory": _memory(),
        "mlx": _mlx(),
        "kernels": _kernels(),
        "metal": _metal(),
        "disk": _disk(),
        "paths": _paths(),
        "terminal": _terminal(),
    }


def _versions() -> Facts:
    found: Facts = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> Facts:
    """System, architecture, cores and memory."""
    system = (
        f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else f"{platform.system()} {platform.release()}"
    )
    return {
        "system": system,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _memory() -> Facts:
    """Memory that a model may take."""
    import mlx.core as mx

    found: Facts = {}
    if mx.metal.is_available():
        info = mx.device_info()
        found["gpu_recommended_bytes"] = info.get("max_recommended_working_set_size")
        found["gpu_largest_array_bytes"] = info.get("max_buffer_length")
    if (available := _number("/proc/meminfo", r"^MemAvailable:\s*(\d+) kB$")) is not None:
        found["available_bytes"] = available << 10
    if (limit := _number("/sys/fs/cgroup/memory.max", r"^(\d+)$")) is not None:
        found["container_limit_bytes"] = limit
    return {**found, "used_by_mlx_bytes": mx.get_active_memory()}


def _number(path: str, pattern: str) -> int | None:
    """A number in a system file; None if the file or the number is missing."""
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _mlx() -> Facts:
    import mlx.core as mx

    device = mx.default_device()
    found: Facts = {"backend": "Metal" if mx.metal.is_available() else "CPU", "device": str(device)}
    if mx.metal.is_available():
        info = mx.device_info()
        found["chip"] = info.get("device_name")
        found["architecture"] = info.get("architecture")
    found["computes"] = "yes" if mx.sum(mx.arange(4)).item() == 6 else "no: 0 + 1 + 2 + 3 is not 6"
    return found


def _kernels() -> Facts:
    """The BLAS under MLX's products on Linux, and the kernels compiled for this machine."""
    if sys.platform != "linux":
        return {"used": "no: they are for Linux"}
    from macllm.ops.cpu import blas
    from macllm.ops.cpu.machine import compute_threads, wanted

    matmul = blas.install()
    threads = f"{matmul.threads} thread{'s' * (matmul.threads != 1)}"
    found: Facts = {"matmul": f"{matmul.name}, {threads}" + (f" ({matmul.reason})" if matmul.reason else "")}
    if not wanted():
        return {"used": "no: MACLLM_NATIVE=0", **found}
    return {**_compiled(), **found, "threads": compute_threads(), **_ignored("MACLLM_NATIVE")}


def _compiled() -> Facts:
    """Use of the native kernels, and their compiler."""
    from macllm.ops import cpu
    from macllm.ops.cpu import build

    found: Facts = {}
    try:
        found["compiler"] = build.compiler()
        found["flags"] = " ".join(build.flags())
        found["instruction_set"] = build.instruction_set()
        module = str(build.library())
        if cpu.pending():
            return {"used": NOT_COMPILED, **found}
        used = "yes" if cpu.available() else f"no: {cpu.reason()}"
        return {"used": used, **found, "module": module}
    except build.BuildError as error:
        return {"used": f"no: {error}" + (f" ({error.remedy})" if error.remedy else ""), **found}


def _metal() -> Facts:
    """Our Metal kernels: decisions made on this machine."""
    import mlx.core as mx

    from macllm.ops.metal import approved

    if not mx.metal.is_available():
        return {"used": "no: they need a Mac" if sys.platform != "darwin" else "no: MLX finds no Metal here"}
    asked = os.environ.get("MACLLM_METAL")
    if asked in ("0", "1"):
        return {"used": f"{'all, tested or not' if asked == '1' else 'no'}: MACLLM_METAL={asked}"}
    ignored, saved = _ignored("MACLLM_METAL"), approved.load()
    if saved is None:
        return {"used": NOT_TRIED, **ignored}
    serving = [name for name, used in saved.decisions.items() if used]
    source = f"{TRY_KERNELS} tests them again"
    if saved.quick:
        count = "all" if len(saved.quick) == len(saved.decisions) else f"{len(saved.quick)}"
        source = f"{count} from quick tests; {TRY_KERNELS} tests all at length"
    return {
        "used": f"for {len(serving)} of {len(saved.decisions)} combinations of operation, type and size; {source}",
        **ignored,
        "serving": serving,
        "not_serving": {name: saved.reasons.get(name, "") for name, used in saved.decisions.items() if not used},
    }


def _ignored(switch: str) -> Facts:
    """An environment variable that is ignored, since it is set to something other than 0 or 1."""
    asked = os.environ.get(switch) or "1"
    return {} if asked in ("0", "1") else {"ignored": f"{switch}={asked}: neither 0 nor 1"}


def _disk() -> Facts:
    from macllm.hub import cache_folder

    cache = cache_folder()
    nearest = next(folder for folder in (cache, *cache.parents) if folder.exists())
    usage = shutil.disk_usage(nearest)
    found: Facts = {"free_bytes": usage.free, "size_bytes": usage.total}
    if usage.free < LOW_DISK_BYTES:
        found["warning"] = f"little is free for models in {cache}: macllm models rm NAME frees some"
    if not os.access(nearest, os.W_OK):
        found["warning"] = f"{nearest} cannot be written, so that no model can be downloaded: set HF_HOME to a folder"
    return found


def _paths() -> Facts:
    from macllm.hub import cache_folder, list_models
    from macllm.hub.names import endpoint, is_bundled, is_offline
    from macllm.ops.cpu.build import cache_folder as kernel_cache

    models = [model for model in list_models() if not is_bundled(model.name)]
    return {
        "model_cache": str(cache_folder()),
        "cached_models": len(models),
        "cached_bytes": sum(model.size_bytes for model in models),
        "kernel_cache": str(kernel_cache()),
        "hub": "off" if is_offline() else endpoint(),
        "hub_token": _hub_token(),
    }


def _hub_token() -> str:
    """State of the token that downloads send, from the environment or Hugging Face's file."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return "not used: HF_HUB_DISABLE_IMPLICIT_TOKEN"
    from huggingface_hub import get_token

    return "set" if get_token() else "not set"


def _terminal() -> Facts:
    """The terminal of the chat."""
    streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    terminals = [name for name, stream in streams.items() if stream is not None and stream.isatty()]
    columns, rows = shutil.get_terminal_size((0, 0)) if terminals else (0, 0)
    return {
        "terminals": ", ".join(terminals) or "none",
        "size": f"{columns} x {rows}" if columns else None,
        "kind": os.environ.get("TERM") or None,
        "program": os.environ.get("TERM_PROGRAM") or None,
        "colours": _colours(),
        "COLORTERM": os.environ.get("COLORTERM") or None,
        "encoding": getattr(sys.stdout, "encoding", None) or locale.getpreferredencoding(False),
        "inside": ", ".join(name for name, sign in (("tmux", "TMUX"), ("ssh", "SSH_TTY")) if os.environ.get(sign))
        or "-",
    }


def _colours() -> str:
    kind = os.environ.get("TERM", "")
    if os.environ.get("NO_COLOR"):
        return "none: NO_COLOR is set"
    if kind in ("", "dumb"):
        return "none: TERM names no terminal"
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return "16 million"
    return "256" if "256" in kind else "16"
