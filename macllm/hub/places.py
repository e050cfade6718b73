"""Folders on this disk with models and adapters of others: LM Studio's, the user's, and macllm's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath

from .files import is_stray

SEARCHED = "MACLLM_MODELS"
"""Variable with more folders to search, separated as in PATH."""
_DEPTH = 3  # of a model below a searched folder: publisher, name, one more
_ADAPTER_FILES = ("adapters.safetensors", "adapter_model.safetensors")
_Place = tuple[int, int]  # of a folder on its disk: device and number
_LEFT_OUT = ("models--", "blobs", "snapshots", "__pycache__", "node_modules")


def model_folders() -> list[Path]:
    """Folders of models outside of the Hugging Face cache, also of unreadable ones, by name."""
    roots = [*lm_studio_folders(), *_chosen()]
    return _found(roots, _holds_model)


def adapter_folders() -> list[Path]:
    """Folders with an adapter: macllm's own, those in the working folder, and the user's."""
    own = [data_folder() / "adapters", data_folder() / "runs", Path("run"), Path("runs")]
    return _found([*own, *_chosen()], _holds_adapter, here=True)


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


def ollama_models() -> list[tuple[str, Path, int]]:
    """Models of Ollama: name with tag, manifest, and bytes of the layers.

    Broken manifests are left out.
    """
    root = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models").expanduser() / "manifests"
    found: list[tuple[str, Path, int]] = []
    with suppress(OSError):
        for path in sorted(root.glob("*/*/*/*")):
            with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
                size = sum(int(layer["size"]) for layer in json.loads(path.read_bytes())["layers"])
                owner, name, tag = path.relative_to(root).parts[-3:]
                found.append((f"{name}:{tag}" if owner == "library" else f"{owner}/{name}:{tag}", path, size))
    return found


def _chosen() -> list[Path]:
    return [Path(text).expanduser() for text in os.environ.get(SEARCHED, "").split(os.pathsep) if text]


def _holds_model(names: frozenset[str]) -> bool:
    if _holds_adapter(names):
        return False
    return "config.json" in names or any(
        name.endswith(".gguf") or (name.startswith("model") and name.endswith(".safetensors")) for name in names
    )


def _holds_adapter(names: frozenset[str]) -> bool:
    return "adapter_config.json" in names or _ADAPTER_FILES[0] in names


def _found(roots: Iterable[Path], wanted: Callable[[frozenset[str]], bool], *, here: bool = False) -> list[Path]:
    """The folders that are wanted among those in `roots`, and in the working folder if `here`, each once."""
    walked: dict[_Place, int] = {}
    found: dict[_Place, Path] = {}
    for root, depth in [*((root, _DEPTH) for root in roots), *[(Path(), 1)] * here]:
        for place, folder, names in _walk(root, depth, walked):
            if wanted(names):
                found.setdefault(place, folder.absolute())
    return list(found.values())


def _walk(folder: Path, depth: int, walked: dict[_Place, int]) -> Iterator[tuple[_Place, Path, frozenset[str]]]:
    """A folder and those below it, to a depth, with the names inside; unreadable ones are left out.

    Folders in `walked`, with the depth below them, are not walked again. Real folders come before links to folders, so
    that a folder has the name by which its user knows it. Each costs two calls of the system, because there may be
    tens of thousands.
    """
    try:
        status = folder.stat()
        place = status.st_dev, status.st_ino
        if walked.get(place, -1) >= depth:
            return
        walked[place] = depth
        with os.scandir(folder) as entries:
            inside = list(entries)
    except OSError:
        return
    yield place, folder, frozenset(entry.name for entry in inside)
    below = [entry for entry in inside if _is_searched(entry)] if depth else []
    for entry in sorted(below, key=lambda entry: (entry.is_symlink(), entry.name)):
        yield from _walk(folder / entry.name, depth - 1, walked)


def _is_searched(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith((".", *_LEFT_OUT)) or is_stray(PurePath(entry.name)):
        return False
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
