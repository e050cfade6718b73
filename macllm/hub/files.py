"""Files of a repository that a model needs, and checks of a folder for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from macllm.errors import MacllmError, ModelNotFoundError, NetworkError
from macllm.files import is_pointer

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_TOKENIZERS = frozenset(
    ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "vocab.txt",
     "vocab.json")
)  # fmt: skip
_SMALL = _TOKENIZERS | frozenset(
    ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
     "merges.txt", "target.spm", "chat_template.json", "chat_template.jinja", "adapter_config.json", "modules.json",
     "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
)  # fmt: skip
_TEMPLATE = re.compile(r"additional_chat_templates/[^/.][^/]*\.jinja")
_ADAPTERS = ("adapter_model.safetensors", "adapters.safetensors")
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

# What Finder, Explorer and notebooks leave beside the files of others.
_STRAYS = frozenset(
    (".DS_Store", ".ipynb_checkpoints", "__MACOSX", ".Spotlight-V100", ".Trashes", ".fseventsd", "Thumbs.db",
     "desktop.ini")
)  # fmt: skip


def is_weights(name: str) -> bool:
    """True for the file of weights or of their index, by its name."""
    return name.endswith(".safetensors") or name == INDEX_NAME


def is_stray(path: PurePath) -> bool:
    """True for files that do not belong to a model: AppleDouble files (`._name`, RFC 1740) and `_STRAYS`."""
    return any(part.startswith("._") or part in _STRAYS for part in path.parts)


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository; `digest` is the SHA-256 of large files and the git SHA-1 of small ones."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit."""

    commit: str
    files: dict[str, RepoFile]


def checked_listing(address: str, commit: object, files: Iterable[RepoFile]) -> Listing:
    """A `Listing` from a hub's answer; raises NetworkError for paths outside of the model's folder."""
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise _invalid_listing(address, f"the commit {commit!r}")
    listed = {file.name: file for file in files}
    for name, file in listed.items():
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or any(ord(char) < 32 for char in name):
            raise _invalid_listing(address, f"the file {name!r}")
        if file.size_bytes < 0 or not _HASH.fullmatch(file.digest):
            raise _invalid_listing(address, f"the size {file.size_bytes} and the hash {file.digest!r} of {name!r}")
    return Listing(commit, listed)


def needed_files(repo: str, listing: Listing, index: bytes | None) -> list[RepoFile]:
    """The files that macllm reads, small ones first; `index` is the content of the listed weight index.

    Raises ModelNotFoundError if the repository has no safetensors weights, or only some of them.
    """
    small = [name for name in listing.files if name in _SMALL or _TEMPLATE.fullmatch(name)]
    shards = _indexed(index) if index is not None else []
    present = [name for name in shards if name in listing.files]
    if present and len(present) < len(shards):
        raise ModelNotFoundError(
            f"{repo} is incomplete on the hub",
            cause=f"its index names {len(shards)} weight files, {len(shards) - len(present)} of them are missing",
            remedy="choose another revision or another copy of the model",
        )
    weights = [INDEX_NAME, *present] if present else _unindexed(listing.files)
    if not weights:
        others = sorted(name for name in listing.files if name.endswith((".bin", ".pth", ".pt", ".gguf", ".onnx")))
        raise ModelNotFoundError(
            f"{repo} has no safetensors weights",
            cause=f"it has {', '.join(others[:3])}" if others else "it has no weight files",
            remedy="look for a converted copy, for example from mlx-community",
        )
    return [listing.files[name] for name in sorted(small) + weights]


def model_files(folder: Path) -> list[tuple[str, int]]:
    """The files of a folder that belong to its model, by name, with their sizes in bytes."""
    found = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not is_stray(path.relative_to(folder))
    }
    names = [name for name in found if name in _SMALL or _TEMPLATE.fullmatch(name)]
    try:
        shards = _indexed((folder / INDEX_NAME).read_bytes()) if INDEX_NAME in found else []
    except MacllmError:
        shards = []
    shards = [name for name in shards if name in found]
    weights = [INDEX_NAME, *shards] if shards else _unindexed(found)
    return [(name, found[name]) for name in sorted({*names, *weights})]


def refuse_pointers(folder: Path) -> None:
    """Raise ModelNotFoundError for Git LFS pointers in place of a model's large files."""
    held = [path for path in sorted(folder.iterdir()) if path.is_file() and not is_stray(path.relative_to(folder))]
    read = [path.name for path in held if path.name in _SMALL or path.suffix == ".safetensors"]
    pointers = [name for name in read if is_pointer(folder / name)]
    if pointers:
        raise ModelNotFoundError(
            f"{folder / pointers[0]} is a pointer of Git LFS, not the file itself",
            cause="the repository was cloned without git-lfs, which leaves out large files",
            remedy=f"git -C {folder} lfs pull, or macllm models get with the model's name",
        )


def problem_of(folder: Path) -> str | None:
    """The missing part of a model folder of unknown origin; None if complete, judged by file names."""
    if (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in _ADAPTERS):
        return None
    if not (folder / "config.json").is_file():
        return "config.json is missing"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return "the tokenizer is missing"
    shards: list[str] = []
    if (folder / INDEX_NAME).is_file():
        try:
            shards = _indexed((folder / INDEX_NAME).read_bytes())
        except MacllmError as error:
            return error.cause
    elif not (folder / SINGLE_NAME).is_file():
        shards = _numbered(folder)
        if not shards and not any(folder.glob("weights*.safetensors")):
            return "the weights are missing"
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing and not (len(missing) == len(shards) and (folder / SINGLE_NAME).is_file()):
        return f"{len(missing)} of {len(shards)} weight files are missing"
    return None


def _unindexed(names: Iterable[str]) -> list[str]:
    found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if SINGLE_NAME in found:
        return [SINGLE_NAME]
    if shards := [name for name in found if name.startswith("model-") and _NUMBERED.fullmatch(name)]:
        return shards
    for prefix in ("model", "weights"):
        if chosen := [name for name in found if name.startswith(prefix)]:
            return chosen
    return [name for name in found if name in _ADAPTERS]


def _indexed(index: bytes) -> list[str]:
    try:
        weight_map: Any = json.loads(index)["weight_map"]
        return sorted({str(PurePosixPath(shard)) for shard in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFoundError(
            "the model's weight index cannot be read",
            cause=f"{INDEX_NAME} is damaged: {error}",
            remedy="choose another revision or another copy of the model",
        ) from error


def _numbered(folder: Path) -> list[str]:
    """All names of a numbered set of shards, if the folder has at least one of them."""
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    for match in filter(None, map(_NUMBERED.fullmatch, names)):
        stem, _, count = match.groups()
        return [f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    return names[:1]


def _invalid_listing(address: str, what: str) -> NetworkError:
    return NetworkError(
        f"{address} lists {what}",
        cause="a hub does not send this; the server may be broken or hostile",
        remedy="check HF_ENDPOINT, and do not use this model",
    )
