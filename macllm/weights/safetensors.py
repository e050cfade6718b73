"""Safetensors files and folders: checked before use, read lazily, written atomically."""

from __future__ import annotations

import errno
import json
import logging
import re
import struct
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx

from macllm.errors import CheckpointError, DoesNotFitError, ModelNotFoundError
from macllm.files import draft, occupy_standard_descriptors, publish, replacing, sync, wrong_content

from .header import DTYPE_BITS, HOW_TO_REPAIR, TensorInfo, damaged, read_header, read_metadata, unique_keys

__all__ = [
    "TensorInfo",
    "load_file",
    "load_folder",
    "read_header",
    "read_metadata",
    "save_file",
    "save_folder",
    "weight_files",
]

log = logging.getLogger("macllm")

MAX_INDEX_BYTES = 100_000_000
_MIXING = ".model.safetensors.mixing"  # exists while new shards replace old ones
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_UNREADABLE = frozenset(name for name in DTYPE_BITS if name[0] == "F" and DTYPE_BITS[name] <= 8)
_NAMES = {
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16", mx.uint32: "U32",
    mx.int32: "I32", mx.uint64: "U64", mx.int64: "I64", mx.float16: "F16", mx.bfloat16: "BF16",
    mx.float32: "F32", mx.float64: "F64", mx.complex64: "C64",
}  # fmt: skip
_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
# Suffixes of weights in layouts that are not read.
_OTHER_WEIGHTS = frozenset((".bin", ".pth", ".pt", ".gguf", ".ggml", ".onnx", ".npz", ".h5", ".safetensors"))
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def load_file(path: str | Path, small_floats: bool = False) -> dict[str, mx.array]:
    """Name -> array of one safetensors file; data are read when an array is first evaluated.

    F64 becomes float32; a file with F64 tensors is read at once. Raises CheckpointError, also for 4- to 8-bit floats;
    with `small_floats` these are returned as bytes.
    """
    path = Path(path)
    occupy_standard_descriptors()
    infos = read_header(path)
    for name, info in infos.items():
        if info.dtype in _UNREADABLE and not small_floats:
            raise CheckpointError(
                f"{path}: tensor {name!r} is stored as {info.dtype}, which macllm does not read",
                cause="such floats need the scales of the tool that wrote them",
                remedy="use the bfloat16 or the MLX-quantized copy of this model",
            )
    if any(info.dtype == "F64" for info in infos.values()):
        return {name: _read_now(path, info) for name, info in infos.items()}
    try:
        return cast("dict[str, mx.array]", mx.load(str(path), format="safetensors"))
    except (RuntimeError, ValueError) as error:
        raise damaged(path, str(error)) from error


def load_folder(folder: str | Path, small_floats: bool = False) -> dict[str, mx.array]:
    """Name -> array of all weights of a model folder, lazily (see `load_file`).

    Reads the shards of `model.safetensors.index.json`, else `model.safetensors`, else every `model*.safetensors`,
    else `weights*.safetensors`. A tensor that only the index lists is logged.
    Raises ModelNotFoundError without weights, CheckpointError for invalid ones.
    """
    folder = Path(folder)
    index = _read_index(folder)
    tensors: dict[str, mx.array] = {}
    home: dict[str, str] = {}
    for path in _weight_files(folder, index):
        for name, array in load_file(path, small_floats).items():
            if name in home:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} is in two files, {home[name]} and {path.name}",
                    cause="files of two checkpoints are in one folder",
                    remedy="keep the files of one checkpoint only",
                )
            home[name], tensors[name] = path.name, array
    for name, shard in (index or {}).items():
        if name not in home:
            # An index may still list the second name of a tied matrix; if the model needs the tensor, loading fails.
            log.warning("%s: tensor %r is not in %s", folder / INDEX_NAME, name, shard)
        elif home[name] != shard:
            raise CheckpointError(
                f"{folder / INDEX_NAME}: tensor {name!r} is not in {shard}",
                cause="the index and the shards are from different checkpoints",
                remedy=HOW_TO_REPAIR,
            )
    return tensors


def weight_files(folder: str | Path) -> list[Path]:
    """The files that `load_folder` reads. Raises: as `load_folder`."""
    folder = Path(folder)
    return _weight_files(folder, _read_index(folder))


def save_file(tensors: Mapping[str, mx.array], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file atomically; the same tensors give the same bytes.

    Raises DoesNotFitError on a full disk.
    """
    path = Path(path)
    with _disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            _write(file, tensors, metadata)


def save_folder(
    tensors: Mapping[str, mx.array],
    folder: str | Path,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> list[Path]:
    """Write a model's weights under transformers' file names; returns the paths, an index last.

    All files are complete on disk before the first takes its name, and replaced weight files are removed last. A reader
    finds the old or the new checkpoint; if new shards have the names of old ones and the save is interrupted, loading
    reports it. Tensors loaded lazily from `folder` itself are safe.
    Each tensor is evaluated when it is written. Raises DoesNotFitError on a full disk, with `folder` unchanged.
    """
    folder = Path(folder)
    shards = _split(tensors, max_shard_bytes)
    count = len(shards)
    names = [SINGLE_NAME] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count > 1:
        names.append(INDEX_NAME)
    written = [folder / name for name in names]
    with _disk_errors(folder), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        drafts = [stack.enter_context(draft(path)) for path in written]
        for path, shard in zip(drafts, shards, strict=False):
            with path.open("xb") as file:
                _write(file, shard, {"format": "mlx"} if metadata is None else metadata)
            sync(path)
        if count > 1:
            drafts[-1].write_text(json.dumps(_index(shards, names), indent=2, ensure_ascii=False) + "\n", "utf-8")
            sync(drafts[-1])
        mixing = folder / _MIXING
        if count > 1 and any(path.exists() for path in written[:count]):
            mixing.touch()
            sync(folder)
        for source, path in zip(drafts, written, strict=True):
            publish(source, path)
        _remove_replaced(folder, frozenset(names))
        sync(folder)
        mixing.unlink(missing_ok=True)
    return written


# Reading


def _read_now(path: Path, info: TensorInfo) -> mx.array:
    import numpy as np  # not at the top: start-up is faster without

    count = prod(info.shape)
    array = np.fromfile(path, dtype=_NUMPY[info.dtype], count=count, offset=info.offset_bytes).reshape(info.shape)
    if info.dtype == "F64":
        return mx.array(array.astype(np.float32))
    return mx.array(array).view(mx.bfloat16) if info.dtype == "BF16" else mx.array(array)


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        index = json.loads(path.read_text("utf-8"), object_pairs_hook=unique_keys)
        weight_map = index["weight_map"]
        if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = "it has no weight_map" if isinstance(error, KeyError) else str(error)
        cause, remedy = wrong_content(path) or (reason, HOW_TO_REPAIR)
        raise CheckpointError(f"{path} is not a valid index", cause=cause, remedy=remedy) from error
    return cast("dict[str, str]", weight_map)


def _weight_files(folder: Path, index: dict[str, str] | None) -> list[Path]:
    if (folder / _MIXING).exists():
        raise CheckpointError(
            f"{folder} has weights of two checkpoints",
            cause="saving over a sharded checkpoint was interrupted",
            remedy="save it again",
        )
    if index is not None:
        shards = [_shard_path(folder, name) for name in sorted(set(index.values()))]
        missing = [shard for shard in shards if not shard.is_file()]
        if not missing:
            return shards
        # Converted checkpoints often keep the index of the original, whose shards are all missing.
        if len(missing) < len(shards) or not (folder / SINGLE_NAME).is_file():
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(shards)} weight files are missing, the first is {missing[0].name}",
                cause=f"{INDEX_NAME} names them",
                remedy="download the model again; complete files are kept",
            )
        index.clear()
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    if shards := sorted(path for path in folder.glob("model-*.safetensors") if _SHARD.fullmatch(path.name)):
        return shards  # without copies such as "model-00001-of-00002 2.safetensors"
    for pattern in ("model*.safetensors", "weights*.safetensors"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise _no_weights(folder)


def _no_weights(folder: Path) -> ModelNotFoundError:
    """The error for a folder without weights in the layout of transformers; names those in other layouts."""
    others = sorted(path.name for path in folder.glob("[!.]*") if path.suffix in _OTHER_WEIGHTS)
    cause = "it has neither model.safetensors nor model.safetensors.index.json"
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 3 else ""
        cause += f", only {', '.join(others[: 2 if more else 3])}{more}"
    return ModelNotFoundError(
        f"{folder} has no weights",
        cause=cause,
        remedy="use a copy in transformers' safetensors form (GGUF and pickled .bin and .pth files are never read)",
    )


def _shard_path(folder: Path, name: str) -> Path:
    """The path of a shard in an index. Raises CheckpointError for one outside of the model's folder."""
    plain = bool(name) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts
    real_folder = folder.resolve()
    homes = [real_folder]
    if real_folder.parent.name == "snapshots":  # the Hugging Face cache: snapshots/<commit>/file -> ../../blobs/<hash>
        repo = real_folder.parent.parent
        homes += [repo / "blobs", repo.parent / "blobs"]
    if not plain or not any((folder / name).resolve().is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{folder / INDEX_NAME} names {name!r}, which is outside of the model folder",
            cause="an index may only name files next to it",
            remedy="do not trust this checkpoint; if the link is your own, copy the file into the folder",
        )
    return folder / name


# Writing


@contextmanager
def _disk_errors(folder: Path) -> Generator[None]:
    """Convert OSError to DoesNotFitError for a full disk, else to CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DoesNotFitError(
                f"the disk of {folder} is full",
                cause=f"{error.strerror}; nothing was written",
                remedy="free some space (`macllm models ls` shows the sizes of models) or choose another folder",
            ) from error
        raise CheckpointError(
            f"cannot write weights to {folder}", cause=error.strerror, remedy="check the path and its permissions"
        ) from error


def _split(tensors: Mapping[str, mx.array], max_shard_bytes: int) -> list[dict[str, mx.array]]:
    shards: list[dict[str, mx.array]] = [{}]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensors[name].nbytes
    return shards


def _write(file: BinaryIO, tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None) -> None:
    # Widest dtype first aligns every tensor to its item size, which readers that map the file require.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        data: Any = mx.flatten(mx.contiguous(tensors[name])).view(mx.uint8)
        file.write(memoryview(data))


def _index(shards: list[dict[str, mx.array]], names: list[str]) -> dict[str, Any]:
    arrays = [array for shard in shards for array in shard.values()]
    shard_of = {key: name for shard, name in zip(shards, names, strict=False) for key in shard}
    return {
        "metadata": {
            "total_parameters": sum(array.size for array in arrays),
            "total_size": sum(array.nbytes for array in arrays),
        },
        "weight_map": dict(sorted(shard_of.items())),
    }


def _remove_replaced(folder: Path, names: frozenset[str]) -> None:
    # The index is removed first: without it a reader uses model.safetensors, never an incomplete set of shards.
    stale = [path for path in sorted(folder.glob("model-*.safetensors")) if _SHARD.fullmatch(path.name)]
    for path in [folder / INDEX_NAME, folder / SINGLE_NAME, *stale]:
        if path.name not in names:
            path.unlink(missing_ok=True)
