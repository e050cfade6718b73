"""OpenBLAS under MLX's own float32 matmul on Linux.

The Linux wheel of MLX is linked against the reference BLAS, fifty times slower than OpenBLAS. `install` points the
entry of `cblas_sgemm` in libmlx's procedure linkage table at the OpenBLAS of the `scipy-openblas32` wheel. Only libmlx
changes, even after its first product; nothing is compiled and no symbol becomes global.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .machine import compute_threads, wanted

DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL = 2, 5, 6, 23
RELOCATION_BYTES, SYMBOL_BYTES = 24, 24


@dataclass(frozen=True)
class Blas:
    """The BLAS behind MLX's float32 matmul: `name`, `threads`, and the reason if not OpenBLAS."""

    name: str
    threads: int
    reason: str | None = None


class _LinkMap(ctypes.Structure):
    """Head of the loader's `link_map` of a library (`link.h`), which a dlopen handle points to."""

    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


_installed: Blas | None = None
_kept: list[ctypes.CDLL] = []
_divided = False


def install() -> Blas:
    """Put OpenBLAS under MLX's matmul if possible and not disabled; returns the BLAS now in use."""
    global _installed
    if _installed is None:
        _installed = _install()
    return _installed


def divide(kernels: ModuleType) -> None:
    """Redirect MLX's sgemm to the native kernels, which divide narrow products into serial OpenBLAS calls."""
    if not _kept:
        return
    global _divided
    openblas = _kept[0]
    _divided = True
    if rebind("cblas_sgemm", kernels.divide_sgemm(_address(openblas.scipy_cblas_sgemm))) is None:
        openblas.scipy_openblas_set_num_threads(1)


def has_serial_sgemm() -> bool:
    """True if the native kernels can call a single-threaded sgemm of OpenBLAS."""
    return _divided


def _install() -> Blas:
    if sys.platform != "linux":
        return Blas("the system's", 0)
    if not wanted():
        return Blas("MLX's own", 1, "MACLLM_NATIVE=0")
    path = _openblas()
    if path is None:
        return Blas("MLX's own", 1, "scipy-openblas32 is not installed")
    try:
        openblas = ctypes.CDLL(str(path))
        reason = rebind("cblas_sgemm", _address(openblas.scipy_cblas_sgemm))
    except (OSError, AttributeError, struct.error) as error:
        return Blas("MLX's own", 1, str(error))
    if reason:
        return Blas("MLX's own", 1, reason)
    _kept.append(openblas)
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        openblas.scipy_openblas_set_num_threads(compute_threads())
    openblas.scipy_openblas_get_config.restype = ctypes.c_char_p
    name = " ".join(openblas.scipy_openblas_get_config().decode().split()[:2])
    return Blas(name, openblas.scipy_openblas_get_num_threads())


def rebind(symbol: str, address: int) -> str | None:
    """Make libmlx call `address` for `symbol` of its bundled BLAS; returns the reason on failure.

    An entry that is no longer the bundled BLAS's is not changed: a preloaded BLAS is the user's choice.
    """
    import mlx.core as mx

    root = Path(str(mx.__file__)).parent
    bundled = sorted((root.parent / "mlx_cpu.libs").glob("libblas-*"))
    if not bundled:
        return "this MLX has no bundled BLAS"
    blas = ctypes.CDLL(str(bundled[0]), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    mlx = ctypes.CDLL(str(root / "lib" / "libmlx.so"), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    ours = {_address(getattr(blas, symbol)), *_rebound}
    for slot in _slots(mlx, symbol):
        entry = ctypes.c_size_t.from_address(slot)
        if entry.value not in ours:
            return f"another BLAS already provides {symbol}"
        if not _writable(slot):
            return "libmlx's linkage table is read-only"
        entry.value = address
        _rebound.add(address)
        return None
    return f"libmlx does not call {symbol}"


_rebound: set[int] = set()


def _slots(library: ctypes.CDLL, symbol: str) -> Iterator[int]:
    """Addresses of the linkage table entries of `symbol` in a loaded ELF64 library."""
    link = ctypes.cast(library._handle, ctypes.POINTER(_LinkMap)).contents
    found: dict[int, int] = {}
    for at in range(link.dynamic, link.dynamic + 16 * 256, 16):
        tag, value = struct.unpack("<qQ", ctypes.string_at(at, 16))
        if tag == 0:
            break
        found[tag] = value
    # glibc stores addresses here, but offsets on machines with a read-only dynamic section.
    symbols, strings, table = (
        found[tag] if found[tag] >= link.base else found[tag] + link.base for tag in (DT_SYMTAB, DT_STRTAB, DT_JMPREL)
    )
    wanted_name = symbol.encode()
    for offset, info, _ in struct.iter_unpack("<QQq", ctypes.string_at(table, found[DT_PLTRELSZ])):
        (name,) = struct.unpack("<I", ctypes.string_at(symbols + SYMBOL_BYTES * (info >> 32), 4))
        if ctypes.string_at(strings + name, len(wanted_name) + 1) == wanted_name + b"\0":
            yield link.base + offset


def _writable(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode = line.split()[:2]
        first, last = (int(part, 16) for part in span.split("-"))
        if first <= address < last:
            return "w" in mode
    return False


def _openblas() -> Path | None:
    package = importlib.util.find_spec("scipy_openblas32")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "lib" / "libscipy_openblas.so"
    return path if path.exists() else None


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # pyright: ignore[reportArgumentType]
