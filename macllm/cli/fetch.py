"""A model's name becomes a folder on this machine; what has to be downloaded for it is told on stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from macllm.units import bytes_text

from .output import Progress, say

if TYPE_CHECKING:
    from macllm.hub import DownloadProgress


def fetch(name: str | None) -> Path:
    """The folder of a model, downloaded only if it is not here whole; None is the bundled model."""
    from macllm.hub import resolve

    return _told(name or "maclet", lambda progress: resolve(name, progress=progress))


def get(name: str) -> Path:
    """The folder of a model, brought to what the hub has now unless the hub is out of bounds."""
    from macllm.hub import download, resolve
    from macllm.hub.names import BUNDLED, is_offline, local_folder

    if name == BUNDLED or is_offline() or local_folder(name):
        return resolve(name)
    return _told(name, lambda progress: download(name, progress=progress))


def _told(name: str, work: Callable[[Callable[[DownloadProgress], None]], Path]) -> Path:
    newest: list[DownloadProgress] = []
    with Progress(name) as progress:

        def tell(state: DownloadProgress) -> None:
            newest[:] = [state]
            progress.update(state.done_bytes, state.total_bytes, state.bytes_per_second)

        folder = work(tell)
    if newest:
        say(f"{name}: {bytes_text(newest[0].total_bytes)} in {folder}")
    return folder
