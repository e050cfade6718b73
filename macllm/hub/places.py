"""Folders on this disk with models and adapters of others: LM Studio's, the user's, and macllm's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from .files import is_stray

SEARCHED = "MACLLM_MODELS"
"""Variable with more folders to search, separated as in PATH."""
_DEPTH = 3  # of a model below a searched folder: publisher, name, one more
_ADAPTER_FILES = ("adapters.safetensors", "adapter_model.safetensors")
_LEFT_OUT = ("models--", "blobs", "snapshots", "__pycache__", "node_modules")


def model_folders() -> list[Path]:
    """Folders of models outside of the Hugging Face cache, also of unreadable ones, by name."""
    roots = [*lm_studio_folders(), *_chosen()]
    return _found(roots, _is_model)


def adapter_folders() -> list[Path]:
    """Folders with an adapter: macllm's own, those in the working folder, and the user's."""
    own = [data_folder() / "adapters", data_folder() / "runs", Path("run"), Path("runs")]
    return _found([*own, *_chosen()], is_adapter, here=[*_walk(Path(), 1)])


def is_adapter(folder: Path) -> bool:
    """True for a folder with a LoRA adapter of mlx-lm's or PEFT's format, complete or not."""
    return (folder / "adapter_config.json").is_file() or (folder / _ADAPTER_FILES[0]).is_file()


def data_folder() -> Path:
    """Folder of what macllm writes for its user: $MACLLM_HOME, else in XDG's data folder."""
    if home := os.environ.get("MACLLM_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "macllm"


def lm_studio_folders() -> list[Path]:
    """Folders of LM Studio's models: where its pointer and its settings say, and the usual ones."""
    homes = [Path.home() / ".lmstudio", Path.home() / ".cache" / "lm-studio"]
    with suppress(OSError, UnicodeDecodeError):
        pointed = (Path.home() / ".lmstudio-home-pointer").read_text("utf-8").strip()
        homes = [Path(pointed)] * bool(pointed) + homes
    found: list[Path] = []
    for home in homes:
        with suppress(OSError, ValueError, RecursionError):
            settings = json.loads((home / "settings.json").read_bytes())
            if isinstance(settings, dict) and isinstance(settings.get("downloadsFolder"), str):
                found.append(Path(settings["downloadsFolder"]).expanduser())
        found.append(home / "models")
    return list(dict.fromkeys(found))


def _chosen() -> list[Path]:
    return [Path(text).expanduser() for text in os.environ.get(SEARCHED, "").split(os.pathsep) if text]


def _is_model(folder: Path) -> bool:
    if is_adapter(folder):
        return False
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf")) or any(folder.glob("model*.safetensors"))


def _found(roots: Iterable[Path], wanted: Callable[[Path], bool], here: Iterable[Path] = ()) -> list[Path]:
    """The folders that are wanted among those in `roots`, to their depth, and among `here`, each once."""
    seen: dict[Path, Path] = {}
    for folder in chain(*(_walk(root, _DEPTH) for root in roots), here):
        with suppress(OSError, RuntimeError):  # RuntimeError: a loop of links
            if wanted(folder):
                seen.setdefault(folder.resolve(), folder.absolute())
    return list(seen.values())


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, to a depth; folders that cannot be read are left out."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return
    yield folder
    for path in inside if depth else ():
        name = path.name
        if not name.startswith((".", *_LEFT_OUT)) and not is_stray(Path(name)):
            yield from _walk(path, depth - 1)
