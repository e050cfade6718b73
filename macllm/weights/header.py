"""Header of a safetensors file, checked before memory is allocated for its tensors.

The format (https://huggingface.co/docs/safetensors): eight bytes of little-endian header length, a JSON
header of `{name: {dtype, shape, data_offsets}}`, then the data of every tensor without a gap.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from macllm.errors import CheckpointError, ModelNotFoundError
from macllm.files import wrong_content

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSION = 2**31 - 1  # MLX counts along an axis in 32 bits
HOW_TO_REPAIR = "download it again (`macllm models verify NAME` finds damaged files) or copy it again from its source"

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of one tensor; its data are `size_bytes` bytes from `offset_bytes` of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Name -> `TensorInfo` of a safetensors file, in file order; all is checked but the data.

    Raises CheckpointError, naming file and tensor, for truncated, extended, damaged or hostile files.
    """
    return _checked(Path(path))[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata (`__metadata__`) of a safetensors file; empty if it has none."""
    return _checked(Path(path))[1]


def damaged(path: Path, cause: str) -> CheckpointError:
    """The error for an invalid safetensors file."""
    cause, remedy = wrong_content(path) or (cause, HOW_TO_REPAIR)
    return CheckpointError(f"{path} is not a valid safetensors file", cause=cause, remedy=remedy)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict (an `object_pairs_hook`); raises ValueError for a duplicate key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} occurs twice")
        found[key] = value
    return found


def _checked(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if path.exists() and not path.is_file():  # opening a pipe would block until it has a writer
        raise CheckpointError(f"{path} is not a file", remedy="copy the model again from its source")
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header, data_start = _read_json(path, file, file_bytes)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path} does not exist", remedy="check the path") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read", cause=error.strerror, remedy="check its permissions") from error
    # mx.save_safetensors without metadata writes null.
    metadata: Any = {} if header.get("__metadata__") is None else header["__metadata__"]
    header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in cast("dict[str, Any]", metadata).values()):
        raise damaged(path, "__metadata__ is not a map from strings to strings")
    infos = [(name, _tensor_info(path, name, entry, data_start)) for name, entry in header.items()]
    infos.sort(key=lambda pair: (pair[1].offset_bytes, pair[1].size_bytes))
    end = data_start
    for name, info in infos:
        if info.offset_bytes != end:
            what = "overlaps the one before it" if info.offset_bytes < end else "leaves a gap before it"
            raise damaged(path, f"tensor {name!r} {what}")
        end += info.size_bytes
        if end > file_bytes:
            raise damaged(path, f"the file has {file_bytes} bytes, but tensor {name!r} ends at {end}: it is truncated")
    if end != file_bytes:
        raise damaged(path, f"{file_bytes - end} bytes follow the last tensor")
    return dict(infos), cast("dict[str, str]", metadata)


def _read_json(path: Path, file: BinaryIO, file_bytes: int) -> tuple[dict[str, Any], int]:
    if file_bytes < 8:
        raise damaged(path, f"it has {file_bytes} bytes, less than the 8 of the header's length")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise damaged(
            path, f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} that the format allows"
        )
    if length > file_bytes - 8:
        raise damaged(path, f"its header claims {length} bytes, but only {file_bytes - 8} follow: it is truncated")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    return cast("dict[str, Any]", header), 8 + length


def _tensor_info(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if len(fields) != 3 or not isinstance(shape, list) or not isinstance(offsets, list):
        raise damaged(path, f"tensor {name!r} lacks a dtype, a shape or two data_offsets")
    sizes, ends = cast("list[Any]", shape), cast("list[Any]", offsets)
    # isinstance would accept a bool as an int.
    if not all(type(n) is int and 0 <= n <= MAX_DIMENSION for n in sizes):
        raise damaged(path, f"tensor {name!r} has the impossible shape {sizes}")
    if len(ends) != 2 or not all(type(n) is int for n in ends) or not 0 <= ends[0] <= ends[1]:
        raise damaged(path, f"tensor {name!r} has the impossible offsets {ends}")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise damaged(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    begin, end = ends
    bits = prod(sizes) * DTYPE_BITS[dtype]
    if bits != (end - begin) * 8:
        raise damaged(
            path, f"tensor {name!r} of shape {sizes} and dtype {dtype} needs {bits / 8:g} bytes, not {end - begin}"
        )
    return TensorInfo(dtype, tuple(sizes), data_start + begin, end - begin)
