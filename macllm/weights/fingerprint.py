"""Fingerprint of a checkpoint: a hash of config, names and shapes of tensors, and samples of data.

Samples, because a hash of all bytes takes seconds for a large model (1.2 GB/s), and training changes every tensor
that it trains. The files that hold the tensors, their order and their metadata do not count.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO, cast

from macllm.files import read_json

from .header import TensorInfo, read_header
from .safetensors import weight_files

_SLICES, _SLICE_BYTES = 4, 512  # of each tensor; training at small rates leaves some 16-bit values as they were
# Fields that say who wrote a config, not what it describes.
_UNRELATED = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache")


def fingerprint(folder: Path) -> str:
    """The fingerprint of the checkpoint in `folder`, such as "sha256:0f3a...".

    Raises ModelNotFoundError without weights, CheckpointError for invalid ones, OSError, ValueError.
    """
    digest = hashlib.sha256(_config(folder))
    places: dict[str, tuple[Path, TensorInfo]] = {}
    for path in weight_files(folder):
        places |= {name: (path, info) for name, info in read_header(path).items()}
    opened: dict[Path, BinaryIO] = {}
    try:
        for name in sorted(places):
            path, info = places[name]
            if path not in opened:
                opened[path] = path.open("rb")
            digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
            for sample in _samples(opened[path], info):
                digest.update(sample)
    finally:
        for file in opened.values():
            file.close()
    return f"sha256:{digest.hexdigest()}"


def _config(folder: Path) -> bytes:
    raw = cast("dict[str, Any]", read_json(folder / "config.json"))
    return json.dumps({key: raw[key] for key in sorted(raw) if key not in _UNRELATED}, sort_keys=True).encode()


def _samples(file: BinaryIO, info: TensorInfo) -> list[bytes]:
    """Slices of a tensor's data, evenly spread; all of a small one."""
    if info.size_bytes <= _SLICES * _SLICE_BYTES:
        starts, length = [0], info.size_bytes
    else:
        last = info.size_bytes - _SLICE_BYTES
        starts, length = [last * number // (_SLICES - 1) for number in range(_SLICES)], _SLICE_BYTES
    found: list[bytes] = []
    for start in starts:
        file.seek(info.offset_bytes + start)
        found.append(file.read(length))
    return found
