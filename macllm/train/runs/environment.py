"""The environment of a run: versions, machine, threads, commit and variables."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("macllm", "mlx", "mlx-lm", "numpy", "tokenizers")
# None of them holds a path, a name or a secret.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "MACLLM_NATIVE",
    "MACLLM_NATIVE_ARCH",
    "MACLLM_NATIVE_FLAGS",
    "MACLLM_METAL",
    "MLX_ENABLE_TF32",
    "MLX_MAX_OPS_PER_BUFFER",
    "MLX_MAX_MB_PER_BUFFER",
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT",
)
_SECONDS = 5.0


def environment() -> dict[str, Any]:
    """The environment of this process as JSON values, without user names, paths and secrets."""
    return {
        **{name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "gpu": _gpu(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "commit": _commit(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor()


def _gpu() -> str | None:
    """The GPU's name if MLX is loaded and uses one."""
    mx: Any = sys.modules.get("mlx.core")
    if mx is None or not mx.metal.is_available():
        return None
    return mx.device_info().get("device_name")


def _commit() -> str | None:
    """The commit of a checkout of macllm, with a plus sign after changes; None for an installed package."""
    root = Path(__file__).parents[3]
    if not ((root / ".git").exists() and (root / "pyproject.toml").is_file()):
        return None
    if not (commit := _output("git", "-C", str(root), "rev-parse", "HEAD")):
        return None
    return commit + "+" * bool(_output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))


def _output(*command: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return None
