"""Splits of a dataset of the hub as files of rows in the Hugging Face cache, downloaded if missing.

    hf:name[:config][@revision][/split]

Only the files of the wanted split are fetched. No code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from macllm.errors import DataError, MacllmError
from macllm.files import read_json, write_json

from .cache import commit_of, repo_folder
from .dataset_files import rows_of_splits
from .dataset_names import DatasetName
from .files import Listing, RepoFile, checked_listing
from .names import DEFAULT_REVISION, cache_folder, endpoint, is_offline
from .snapshot import DownloadProgress, bring, is_complete
from .transfer import Hub, UnreachableError

_CARD = "README.md"


@dataclass(frozen=True)
class SplitFiles:
    """Files of a split on this machine, by their names in the repository.

    The revision of `name` is a commit.
    """

    name: DatasetName
    files: tuple[tuple[str, Path], ...]


class HubDataset:
    """A dataset at one commit: its splits, and their files.

    Raises DataError for a dataset that is missing or has no rows that macllm reads, NetworkError for one that is
    refused.
    """

    def __init__(self, name: DatasetName) -> None:
        self._hub: Hub | None = None
        listing, card = self._listed(name)
        self.name = replace(name, revision=listing.commit)
        self._listing = listing
        self.splits = rows_of_splits(self.name, list(listing.files), card)

    def files(self, split: str, progress: Callable[[DownloadProgress], None] | None = None) -> SplitFiles:
        """The files of a split; those that are missing are downloaded."""
        if split not in self.splits:
            raise DataError(
                f"{self.name.repo} has no split {split!r}",
                cause=f"it has {', '.join(self.splits)}",
                remedy=str(replace(self.name, revision=DEFAULT_REVISION, split=next(iter(self.splits)))),
            )
        name = replace(self.name, split=split)
        wanted = [self._listing.files[each] for each in self.splits[split]]
        snapshot = repo_folder(name.repo, name.kind) / "snapshots" / self._listing.commit
        if not all(is_complete(snapshot, file) for file in wanted):
            if is_offline():
                raise _offline(name)
            bring(self._hub or Hub(name), self._listing, wanted, progress)
        return SplitFiles(name, tuple((file.name, snapshot / file.name) for file in wanted))

    def _listed(self, name: DatasetName) -> tuple[Listing, bytes | None]:
        """The files of the revision and the content of its card.

        Those of a known commit come from this machine, others from the hub.
        """
        commit = commit_of(name)
        stored = _stored(name, commit) if commit else None
        if stored is not None and (commit == name.revision or is_offline()):
            return stored
        if is_offline():
            raise _offline(name)
        self._hub = Hub(name)
        try:
            listing = self._hub.listing()
        except UnreachableError:
            if stored is None:
                raise
            return stored
        known = _stored(name, listing.commit)
        if known is not None:
            _remember(name, listing.commit)
            return known
        card = self._hub.read(listing.commit, listing.files[_CARD]) if _CARD in listing.files else None
        _store(name, listing, card)
        return listing, card


def _offline(name: DatasetName) -> MacllmError:
    return DataError(
        f"{name} is not complete on this machine, and macllm is offline",
        cause=f"it is not in {cache_folder()}",
        remedy="run the same command without HF_HUB_OFFLINE",
    )


def _store(name: DatasetName, listing: Listing, card: bytes | None) -> None:
    """Keep the listing of a commit; without one the dataset is found by the hub only."""
    files = {file.name: [file.size_bytes, file.digest] for file in listing.files.values()}
    text = None if card is None else card.decode("utf-8", "replace")
    path = _listing_path(name, listing.commit)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"files": files, "card": text})
    _remember(name, listing.commit)


def _remember(name: DatasetName, commit: str) -> None:
    """Note the commit of a branch or a tag."""
    if name.revision == commit:
        return
    path = repo_folder(name.repo, name.kind) / "refs" / name.revision
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, "utf-8")


def _stored(name: DatasetName, commit: str) -> tuple[Listing, bytes | None] | None:
    try:
        kept = cast("dict[str, Any]", read_json(_listing_path(name, commit)))
        files = [RepoFile(str(file), int(size), str(digest)) for file, (size, digest) in kept["files"].items()]
        card = kept["card"]
        return checked_listing(endpoint(), commit, files), None if card is None else str(card).encode()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MacllmError):
        return None


def _listing_path(name: DatasetName, commit: str) -> Path:
    return repo_folder(name.repo, name.kind) / ".macllm" / f"{commit}.listing.json"
