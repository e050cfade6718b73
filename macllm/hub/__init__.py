"""A model's name -> a folder on this machine: found in the Hugging Face cache, or downloaded into it.

Imports no MLX, and network libraries only for downloads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macllm.errors import ModelNotFoundError, UsageError

from . import cache
from .cache import CachedModel, FileCheck
from .files import model_files, refuse_pointers
from .names import (
    BUNDLED,
    ModelName,
    bundled_folder,
    bundled_models,
    cache_folder,
    is_bundled,
    is_offline,
    local_folder,
    parse_name,
)
from .snapshot import DownloadProgress
from .transfer import UnreachableError

__all__ = [
    "CachedModel",
    "Description",
    "DownloadProgress",
    "FileCheck",
    "ModelName",
    "cache_folder",
    "describe",
    "download",
    "list_models",
    "parse_name",
    "remove",
    "resolve",
    "resolve_tokenizer",
    "verify",
]


@dataclass(frozen=True)
class Description:
    """Metadata of a model; `path` is None for one that is only on the hub.

    `missing_bytes` is the size of a download. `config` is its config.json.
    """

    name: str
    revision: str
    commit: str
    path: Path | None
    files: tuple[tuple[str, int], ...]
    missing_bytes: int
    config: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """Total size of the files."""
        return sum(size for _, size in self.files)


def resolve(
    name: str | Path | None = None,
    *,
    offline: bool | None = None,
    progress: Callable[[DownloadProgress], None] | None = None,
) -> Path:
    """The folder of a model: a folder, "org/name", "org/name@revision", a bundled one, or (None) maclet.

    A complete model in the cache is used without a request to the hub (`download` checks for updates). `offline`
    None follows HF_HUB_OFFLINE. Raises UsageError, ModelNotFoundError, NetworkError, DoesNotFitError.
    """
    if name is None or is_bundled(name):
        return bundled_folder(name or BUNDLED)
    if folder := local_folder(str(name)):
        refuse_pointers(folder)
        return folder
    parsed = parse_name(str(name))
    found = cache.find(parsed)
    if found is not None and found.problem is None:
        return found.path
    if is_offline() if offline is None else offline:
        what = "is incomplete on this machine" if found else "is not on this machine"
        raise ModelNotFoundError(
            f"{parsed} {what}, and macllm is offline",
            cause=found.problem if found else f"it is not in {cache_folder()}",
            remedy=f"{_local_models(parsed.repo)}; or run `macllm models get {parsed}` without HF_HUB_OFFLINE",
        )
    try:
        return download(parsed, progress=progress)
    except UnreachableError as error:
        if "on this machine" in (error.remedy or ""):  # a similar name has been suggested already
            raise
        raise UnreachableError(
            error.message, cause=error.cause, remedy=f"{error.remedy}; or {_local_models(parsed.repo)}"
        ) from error


def resolve_tokenizer(
    name: str | Path | None = None, *, progress: Callable[[DownloadProgress], None] | None = None
) -> Path:
    """As `resolve`, but a model that is not on this machine is downloaded without its weights."""
    if name is not None and not is_bundled(name) and local_folder(str(name)) is None:
        parsed = parse_name(str(name))
        found = cache.find(parsed)
        if found is not None and cache.has_all_but_weights(found):
            return found.path
        if not is_offline() and (found is None or found.problem is not None):
            from .snapshot import fetch

            return fetch(parsed, progress, weights=False)
    return resolve(name, progress=progress)


def _local_models(repo: str) -> str:
    """A remedy that suggests models on this machine: those with similar names, else any."""
    near = [name for name in cache.similar_names(repo) if name != repo]
    whole = [model.name for model in list_models() if model.problem is None and model.name != repo]
    names = near or list(dict.fromkeys(whole))[:3]
    if not names:
        return "connect to the network"
    return f"use {' or '.join(names)}, which {'is' if len(names) == 1 else 'are'} on this machine"


def download(
    name: str | ModelName,
    *,
    progress: Callable[[DownloadProgress], None] | None = None,
    on_wait: Callable[[], object] = lambda: None,
) -> Path:
    """The folder of a model, updated to the hub's current revision; resumes an interrupted download.

    `on_wait` is called at least five times a second while the hub sends nothing; an exception of it, or of `progress`,
    ends the download and keeps what was received.
    Raises ModelNotFoundError, NetworkError, DoesNotFitError; after an error or an interrupt call it again.
    """
    from .snapshot import fetch

    return fetch(parse_name(name) if isinstance(name, str) else name, progress, on_wait)


def list_models() -> list[CachedModel]:
    """The bundled models and all of the cache, unfinished downloads included (see `CachedModel.problem`)."""
    bundled = [
        CachedModel(name, "bundled", "", folder, sum(size for _, size in model_files(folder)))
        for name, folder in bundled_models().items()
    ]
    return [*bundled, *cache.models()]


def remove(name: str) -> int:
    """Delete a model from the cache, or only the revision that the name gives; the bytes freed.

    Raises ModelNotFoundError, and UsageError for anything that is not in the cache.
    """
    if is_bundled(name) or local_folder(name) is not None:
        raise UsageError(
            f"{name} is not in the cache",
            cause="only downloaded models can be removed",
            remedy="`macllm models ls` lists them; delete your own folders by hand",
        )
    return cache.remove(parse_name(name), whole="@" not in name)


def describe(name: str | None = None, *, offline: bool | None = None) -> Description:
    """Metadata of a model, from this machine, else from the hub; downloads no weights.

    Raises: as `resolve`.
    """
    if name is None or is_bundled(name):
        return _described(name or BUNDLED, "bundled", "", bundled_folder(name or BUNDLED))
    if folder := local_folder(name):
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelNotFoundError(
                f"{folder} is not a model: it has no config.json", remedy="macllm models ls lists downloaded models"
            )
        return _described(str(folder), "", "", folder)
    parsed = parse_name(name)
    found = cache.find(parsed)
    if found is not None and found.problem is None:
        return _described(found.name, found.revision, found.commit, found.path)
    if is_offline() if offline is None else offline:
        resolve(name, offline=True)
    from .snapshot import missing_bytes, plan

    hub, listing, files = plan(parsed)
    config = listing.files.get("config.json")
    return Description(
        parsed.repo,
        parsed.revision,
        listing.commit,
        None,
        tuple((file.name, file.size_bytes) for file in files),
        sum(missing_bytes(parsed, listing, files).values()),
        _config(hub.read(listing.commit, config)) if config else {},
    )


def verify(name: str, *, repair: bool = False) -> Iterator[FileCheck]:
    """Check the files of a cached model against their hashes, one by one.

    With `repair`, damaged files are deleted from the cache, so that the next `download` fetches them.
    Raises ModelNotFoundError, and UsageError for models without hashes (folders, bundled ones).
    """
    if is_bundled(name) or local_folder(name) is not None:
        raise UsageError(
            f"{name} has no hashes to check against",
            cause="only downloaded models have hashes",
            remedy="macllm models ls",
        )
    for checked, path in cache.check(parse_name(name)):
        if repair and checked.status == "damaged":
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        yield checked


def _described(name: str, revision: str, commit: str, folder: Path) -> Description:
    files = tuple(model_files(folder))
    path = folder / "config.json"
    return Description(name, revision, commit, folder, files, 0, _config(path.read_bytes()) if path.is_file() else {})


def _config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
