"""Rows of datasets of the hub: hf:name[:config][@revision][/split]."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from macllm.hub import DownloadProgress
from macllm.hub.dataset_files import canonical
from macllm.hub.dataset_names import is_dataset, parse_dataset
from macllm.hub.datasets import HubDataset
from macllm.hub.names import cache_folder, endpoint, is_offline

_SHOWN_COMMIT = 8  # characters
_COMMIT = re.compile(r"[0-9a-f]{40}")

Progress = Callable[[DownloadProgress], None]


@dataclass(frozen=True)
class RowFiles:
    """Several files of rows, such as a split of a dataset, whose name has the commit.

    Each file has its name in the places of rows.
    """

    name: str
    files: tuple[tuple[str, Path], ...]

    def __str__(self) -> str:
        """The name."""
        return self.name


def open_split(text: str, default: str, progress: Progress | None = None) -> RowFiles:
    """A split of a dataset, downloaded if it is missing; `default` if its name gives none."""
    dataset = _dataset(text)
    split = canonical(dataset.name.split or default, dataset.splits)
    found = dataset.files(split, progress)
    short = replace(found.name, revision=found.name.revision[:_SHOWN_COMMIT], split="")
    return RowFiles(str(found.name), tuple((f"{short}/{name}", path) for name, path in found.files))


def open_validation(text: str, progress: Progress | None = None) -> RowFiles | None:
    """The validation split that belongs to a name without a split; None if there is none."""
    dataset = _dataset(text)
    has_one = not dataset.name.split and canonical("validation", dataset.splits) in dataset.splits
    return open_split(text, "validation", progress) if has_one else None


def pinned(text: str, stored: str = "") -> str:
    """The name of a dataset with its commit in place of a branch; other texts as they are.

    `stored` is the pinned name of an earlier part of the run: its commit is kept, wherever the branch is now.
    """
    if not is_dataset(text):
        return text
    name = parse_dataset(text)
    if is_dataset(stored) and not _COMMIT.fullmatch(name.revision):
        before = parse_dataset(stored)
        if replace(before, revision=name.revision) == name:
            return stored
    return str(replace(name, revision=_dataset(text).name.revision))


def _dataset(text: str) -> HubDataset:
    """The dataset, the same in the whole process: its branch may move on the hub meanwhile."""
    return _opened(text, endpoint(), cache_folder(), is_offline())


@lru_cache(maxsize=16)
def _opened(text: str, _endpoint: str, _cache: Path, _offline: bool) -> HubDataset:
    return HubDataset(parse_dataset(text))
