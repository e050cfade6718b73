"""Model names, and the folders and switches set by environment variables."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from macllm.errors import ModelNotFoundError, UsageError

BUNDLED = "maclet"
_FOLDERS = {  # of the models that come with macllm, in its package of models
    BUNDLED: "maclet",
    "maclet-encoder": "siblings/encoder",
    "maclet-text2text": "siblings/text2text",
    "maclet-moe": "siblings/moe",
}
DEFAULT_REVISION = "main"
PUBLIC_ENDPOINT = "https://huggingface.co"

_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_FILE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pth", ".json")
_SIGNS = ("config.json", "adapter_config.json", "tokenizer.json")  # a folder with one of them is no model of the hub


@dataclass(frozen=True)
class ModelName:
    """A model of the hub: `repo` is "org/name" (or an old "name"), `revision` a branch, tag or commit."""

    kind: ClassVar[str] = "model"

    repo: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        """The name in the form that `parse_name` reads."""
        return self.repo if self.revision == DEFAULT_REVISION else f"{self.repo}@{self.revision}"

    @property
    def again(self) -> str:
        """A command that resumes a download."""
        return f"run `macllm models get {self}`"


def parse_name(text: str) -> ModelName:
    """The `ModelName` of "org/name", "org/name@revision" or the address of its page; raises UsageError."""
    plain = text.strip()
    for prefix in (f"{endpoint()}/", f"{PUBLIC_ENDPOINT}/", "hf.co/"):
        plain = plain.removeprefix(prefix)
    repo, at, revision = plain.partition("@")
    segments = repo.split("/")
    valid = len(segments) <= 2 and len(repo) <= 96 and all(_SEGMENT.fullmatch(segment) for segment in segments)
    # The cache writes "/" as "--"; hubs allow neither "--" nor ".." in a name.
    if not valid or "--" in repo or ".." in repo:
        raise UsageError(
            f"{text!r} is not the name of a model",
            cause="a name is org/name or org/name@revision; a folder begins with a slash or a dot",
            remedy="macllm models ls",
        )
    if not at:
        return ModelName(repo)
    bad_part = any(part.startswith(".") or part.endswith((".", ".lock")) for part in revision.split("/"))
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision[-1] == "/" or bad_part:
        raise UsageError(
            f"{revision!r} is not a revision",
            cause="a revision is a branch, a tag or a commit",
            remedy=f"choose one of those at {endpoint()}/{repo}/tree/main, or leave @… out",
        )
    return ModelName(repo, revision)


def local_folder(text: str) -> Path | None:
    """The folder that `text` names on this machine, or None if it is the name of a model.

    A path to a file of a model gives its folder. Raises ModelNotFoundError if a path does not exist.
    """
    if not text.strip():
        return None
    path = Path(text).expanduser()
    if path.is_dir():
        if _looks_like_path(text) or any((path / name).is_file() for name in _SIGNS):
            return path.absolute()
        return None
    if path.is_file():
        if path.suffix == ".safetensors" or path.name == "config.json":
            return path.absolute().parent
        raise UsageError(
            f"{path} is not a model that macllm reads",
            cause="macllm reads folders with config.json and safetensors",
            remedy="use such a folder",
        )
    if _looks_like_path(text):
        name = path.name.lower()
        bundled = f"; the bundled model is {name}, without a path" if is_bundled(name) else ""
        raise ModelNotFoundError(
            f"the folder {path} does not exist",
            remedy=f"check the path{bundled}; `macllm models ls` lists downloaded models",
        )
    return None


def is_bundled(name: object) -> bool:
    """True for the name of a model that comes with macllm: maclet or one of its siblings."""
    return isinstance(name, str) and name in _FOLDERS


def bundled_folder(name: str | Path = BUNDLED) -> Path:
    """The folder of a model that comes with macllm; raises ModelNotFoundError if it is not installed."""
    package = find_spec("macllm_models")
    folder = Path(*(package.submodule_search_locations or ())[:1] if package else (), _FOLDERS[str(name)])
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"the bundled model {name} is not installed",
            cause=f"{folder / 'config.json'} does not exist",
            remedy="install macllm again, or name another model with --model",
        )
    return folder


def bundled_models() -> dict[str, Path]:
    """Names and folders of the models that come with macllm, those installed, maclet first."""
    found = {}
    for name in _FOLDERS:
        with suppress(ModelNotFoundError):
            found[name] = bundled_folder(name)
    return found


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """True if HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


def cache_folder() -> Path:
    """The Hugging Face cache: HF_HUB_CACHE, else HF_HOME/hub, else the user's cache folder."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not chosen:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        chosen = (os.environ.get("HF_HOME") or f"{caches}/huggingface") + "/hub"
    return Path(os.path.expandvars(chosen)).expanduser()


def _looks_like_path(text: str) -> bool:
    if "://" in text or text.startswith("hf.co/"):
        return False
    deep = text.partition("@")[0].count("/") > 1
    return text.startswith((".", "/", "~")) or deep or text.endswith(_FILE_SUFFIXES)
