"""The registry of runs: one small file per run in macllm's state folder.

Nothing is shared between the files, so that a damaged one hides one run only. The run's folder has its id in
environment.json: a folder that was moved is registered again when it is named by its path.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from macllm.errors import UsageError
from macllm.files import read_json, write_json
from macllm.hub.speeds import state_folder

from ..config import SETTINGS_NAME
from ..config.data import INPUTS
from ..rows import is_dataset
from .environment import environment
from .folder import ENVIRONMENT

SHORTEST_ID = 4  # characters that name a run
_ID_BYTES = 4
_LATEST = 1e11  # seconds since 1970: the year 5138
_ID = re.compile(r"[0-9a-f]{8}")
_KINDS = {"adapter_path": "finetune", "output": "train"}  # the setting that names the folder -> the command


@dataclass(frozen=True)
class RegisteredRun:
    """A registered run. `started`: seconds since 1970; `directory`: that of relative paths."""

    id: str  # empty for a run that is not registered
    folder: str
    command: str
    started: float
    base: str = ""
    directory: str = ""

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.name

    @property
    def is_missing(self) -> bool:
        """True if the folder has no run any more."""
        return not (self.path / SETTINGS_NAME).is_file()


def register(folder: Path, settings: dict[str, Any]) -> None:
    """Write the environment of a beginning or resumed run into its folder, and add it to the registry.

    A registry that cannot be written is no reason to end the run. Raises: OSError if the folder cannot be written.
    """
    about = read_about(folder)
    known, now = _identity(about), time.time()
    before = _read(registry_folder() / f"{known}.json") if known else None
    copied = before is not None and before.path != folder.resolve() and not before.is_missing
    identity = os.urandom(_ID_BYTES).hex() if copied or not known else known
    started = now if copied else _started(about, now)
    write_json(folder / ENVIRONMENT, {**about, "run": identity, "started": started, **environment()})
    base = str(settings.get("model") or settings.get("config") or "")
    entry = RegisteredRun(identity, str(folder.resolve()), command_of(settings), started, base, os.getcwd())  # noqa: PTH109
    with suppress(OSError):
        _write(entry)


def read_about(folder: Path) -> dict[str, Any]:
    """The content of environment.json: id, start, parent and environment of a run; empty without any."""
    with suppress(OSError, ValueError):
        about = read_json(folder / ENVIRONMENT)
        return about if isinstance(about, dict) else {}
    return {}


def command_of(settings: dict[str, Any]) -> str:
    """The command whose settings these are: finetune or train."""
    return next((command for key, command in _KINDS.items() if key in settings), "")


def entries() -> list[RegisteredRun]:
    """The registered runs, newest first; files that cannot be read are left out."""
    found = (_read(path) for path in _files())
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (-entry.started, entry.id))


def damaged() -> list[Path]:
    """Files of the registry that cannot be read, or the registry itself."""
    place = registry_folder()
    try:
        next(place.iterdir(), None)
        return [path for path in _files() if _read(path) is None]
    except FileNotFoundError:
        return []
    except OSError:
        return [place]


def short_ids(runs: list[RegisteredRun]) -> dict[str, str]:
    """The shortest unique beginning of each id, of at least four characters."""
    ids = [entry.id for entry in runs]

    def shortest(one: str) -> str:
        lengths = range(SHORTEST_ID, len(one))
        return next((one[:n] for n in lengths if sum(other.startswith(one[:n]) for other in ids) == 1), one)

    return {one: shortest(one) for one in ids}


def find(text: str) -> RegisteredRun:
    """The run that a path, the name of a folder or at least four characters of an id mean, in this order.

    Raises: UsageError for no run, or for several.
    """
    if not text.strip() or "\0" in text:
        raise UsageError(f"no run {text!r}", remedy="macllm runs ls, or the path of a run's folder")
    runs, at = entries(), expanded(text)
    if (at / SETTINGS_NAME).is_file():
        return _at(at, runs)
    found = [entry for entry in runs if entry.path == at.resolve()]
    found = found or [entry for entry in runs if entry.name == text]
    found = found or [entry for entry in runs if len(text) >= SHORTEST_ID and entry.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{entry.id} in {entry.folder}" for entry in found[:4])
        raise UsageError(f"{text!r} is the name of {len(found)} runs", cause=several, remedy="an id")
    cause = f"an id needs {SHORTEST_ID} characters" if any(entry.id.startswith(text) for entry in runs) else None
    raise UsageError(f"no run {text!r}", cause=cause, remedy="macllm runs ls, or the path of a run's folder")


def expanded(text: str) -> Path:
    """The path with the home folder in place of ~, if there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_registered(folder: Path) -> bool:
    """True if the registry has the run in a folder."""
    at = folder.resolve()
    return any(entry.path == at for entry in entries())


def forget(entry: RegisteredRun) -> None:
    """Remove a run from the registry; its folder stays. Raises: OSError."""
    if entry.id:
        (registry_folder() / f"{entry.id}.json").unlink(missing_ok=True)


def _at(folder: Path, runs: list[RegisteredRun]) -> RegisteredRun:
    """The run in a folder, registered under its new path if it was moved; a copy has no id."""
    folder = folder.resolve()
    if here := [entry for entry in runs if entry.path == folder]:
        return here[0]
    about, settings = read_about(folder), read_settings(folder)
    identity = _identity(about)
    started = _started(about, (folder / SETTINGS_NAME).stat().st_mtime)
    base = str(settings.get("model") or settings.get("config") or "")
    known = next((entry for entry in runs if entry.id == identity), None)
    if known is None or not known.is_missing:  # the id of a copy is that of the run that was copied
        return RegisteredRun("", str(folder), command_of(settings), started, base)
    entry = replace(known, folder=str(folder))
    with suppress(OSError):
        _write(entry)
    return entry


def _identity(about: dict[str, Any]) -> str:
    identity = str(about.get("run"))
    return identity if _ID.fullmatch(identity) else ""


def _started(about: dict[str, Any], default: float) -> float:
    started = about.get("started")
    return float(started) if isinstance(started, int | float) else default


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in run.json; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        settings = read_json(folder / SETTINGS_NAME)
        return settings if isinstance(settings, dict) else {}
    return {}


def located_settings(run: RegisteredRun) -> dict[str, Any]:
    """The settings in run.json, with absolute paths in place of those relative to the run's directory."""
    return {name: located(name, value, Path(run.directory)) for name, value in read_settings(run.path).items()}


def located(name: str, value: Any, folder: Path) -> Any:
    """The value of a setting, with an absolute path in place of one relative to `folder`.

    Names of models stay as they are.
    """
    if name not in INPUTS or not value or not isinstance(value, str) or is_dataset(value):
        return value
    path = folder / expanded(value)
    is_name = name in ("model", "tokenizer") and not path.is_dir()
    return value if is_name else str(path.resolve())


def registry_folder() -> Path:
    """The folder of the registry."""
    return state_folder() / "runs"


def _files() -> list[Path]:
    with suppress(OSError):
        files = registry_folder().iterdir()
        return [path for path in files if path.suffix == ".json" and not path.name.startswith(".")]
    return []


def _read(path: Path) -> RegisteredRun | None:
    try:
        entry = RegisteredRun(**read_json(path))
    except (OSError, ValueError, TypeError):
        return None
    texts = (entry.id, entry.folder, entry.command, entry.base, entry.directory)
    whole = all(isinstance(text, str) and "\0" not in text for text in texts)
    whole = whole and isinstance(entry.started, int | float) and 0 <= entry.started < _LATEST
    return entry if whole and entry.id == path.stem and Path(entry.folder).is_absolute() else None


def _write(entry: RegisteredRun) -> None:
    registry_folder().mkdir(parents=True, exist_ok=True)
    for other in entries():  # another run was in the same folder before
        if other.folder == entry.folder and other.id != entry.id:
            forget(other)
    write_json(registry_folder() / f"{entry.id}.json", asdict(entry))
