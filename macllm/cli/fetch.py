"""Resolve a model's name to a local folder, downloading it with progress on stderr if needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from macllm.errors import ModelNotFoundError, UsageError
from macllm.units import bytes_text

from .output import Progress, say

if TYPE_CHECKING:
    from macllm.hub import DownloadProgress
    from macllm.train.config import TrainConfig


def fetch(name: str | None) -> Path:
    """The folder of a model, downloaded unless it is cached; None: the bundled model."""
    from macllm.hub import resolve

    return _with_progress(name or "maclet", lambda progress: resolve(name, progress=progress))


def fetch_base(asked: str | None, recorded: Iterable[object]) -> Path:
    """The folder of an adapter's base: the model that is asked for, or the first that adapters record.

    Raises ModelNotFoundError, for a recorded one with a way to take another.
    """
    base = asked or next((name for name in recorded if isinstance(name, str)), None)
    try:
        return fetch(base)
    except (ModelNotFoundError, UsageError) as error:
        if asked:
            raise
        cause = ": ".join(filter(None, (error.message, error.cause)))
        raise ModelNotFoundError(
            f"the base that the adapter records is missing: {base}",
            cause=cause,
            remedy="--model with that model's name",
        ) from error


def fetch_tokenizer(name: str) -> Path:
    """The folder of a model's tokenizer and settings; weights are not downloaded."""
    from macllm.hub import resolve_tokenizer

    return _with_progress(name, lambda progress: resolve_tokenizer(name, progress=progress))


def get(name: str) -> Path:
    """The folder of a model, updated to the hub's current revision unless offline."""
    from macllm.hub import download, resolve
    from macllm.hub.names import is_bundled, is_offline, local_folder

    if is_bundled(name) or is_offline() or local_folder(name):
        return resolve(name)
    return _with_progress(name, lambda progress: download(name, progress=progress))


def fetch_rows(config: TrainConfig) -> None:
    """Download the rows of datasets of the hub that a config names and that are not on this machine."""
    _fetch_split(config.data, config.valid)


def fetch_named_rows(*data: str) -> None:
    """Download the rows of those of `data` that are datasets of the hub and not on this machine."""
    for each in data:
        _fetch_split(each, "")


def _fetch_split(data: str, valid: str) -> None:
    from macllm.hub import cache_folder
    from macllm.train import rows

    def bring(progress: Callable[[DownloadProgress], None]) -> Path:
        rows.find_files(data, valid, progress)
        return cache_folder()

    if named := [text for text in (data, valid) if rows.is_dataset(text)]:
        _with_progress(named[0], bring)


def _with_progress(name: str, work: Callable[[Callable[[DownloadProgress], None]], Path]) -> Path:
    newest: list[DownloadProgress] = []
    with Progress(name) as progress:

        def on_progress(state: DownloadProgress) -> None:
            newest[:] = [state]
            progress.update(state.done_bytes, state.total_bytes, state.bytes_per_second)

        folder = work(on_progress)
    if newest:
        say(f"{name}: {bytes_text(newest[0].total_bytes)} in {folder}")
    return folder
