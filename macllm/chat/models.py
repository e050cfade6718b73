"""Models and adapters that a chat can use: size, context, fit, speed, or the reason against it.

Read from names, headers and config files alone. Imports no MLX, because the terminal's process lists them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from macllm.errors import MacllmError, ModelNotFoundError
from macllm.files import read_json, write_json
from macllm.hub import CachedModel, Description, ModelName, cache_folder, list_models, speeds
from macllm.hub.catalogue import Recommended, best_for, catalogue
from macllm.hub.files import model_files, problem_of
from macllm.hub.fit import Fit, fit, memory_limit
from macllm.hub.names import BUNDLED, is_bundled
from macllm.hub.places import adapter_folders, is_adapter, model_folders, ollama_models
from macllm.hub.shape import ModelShape, read_shape
from macllm.hub.speeds import Measurements, ModelSpeed
from macllm.hub.support import ENCODERS, unsupported
from macllm.weights.header import read_header

_UNKNOWN = ModelShape()
_GGUF = "GGUF; macllm reads safetensors"
_OLLAMA = f"Ollama's {_GGUF}"

ModelKind = Literal["bundled", "cached", "folder", "catalogue", "adapter"]


@dataclass(frozen=True)
class UsableModel:
    """A model or an adapter. `name` is its argument for --model or --adapter.

    `size_bytes` is the size on disk, of a catalogue's model the size of its weights. `problem` is the reason why it
    cannot be used; None for a usable one. `base` is the model that an adapter was trained on, "" if not known.
    """

    name: str
    kind: ModelKind
    size_bytes: int
    shape: ModelShape = _UNKNOWN
    fit: Fit | None = None
    speed: ModelSpeed | None = None
    problem: str | None = None
    path: Path | None = None
    revision: str = ""
    commit: str = ""
    base: str = ""
    licence: str = ""
    use: str = ""
    unfinished: bool = False  # its download was interrupted, and can go on

    @property
    def title(self) -> str:
        """The last part of the name, for narrow displays."""
        return self.name.rstrip("/").rsplit("/", 1)[-1] or self.name

    @property
    def is_local(self) -> bool:
        """True for a model on this machine."""
        return self.kind in ("bundled", "cached", "folder")


def usable_models(memory_bytes: int | None = None) -> list[UsableModel]:
    """Models by name, adapters, then those of the catalogue that are not here. Usable ones come first.

    `memory_bytes` is what a model may use; None: as the engine reported it last, else estimated for this machine.
    """
    measured = speeds.load()
    memory = memory_bytes or measured.memory_limit or memory_limit()
    local = [
        _readable(lambda model=model: _cached(model, measured, memory), UsableModel(model.name, "cached", 0))
        for model in list_models()
    ]
    cache = cache_folder().resolve()
    local += [
        _readable(lambda folder=folder: _folder(folder, measured, memory), UsableModel(str(folder), "folder", 0))
        for folder in model_folders()
        if cache not in folder.resolve().parents
    ]
    local += [
        UsableModel(f"ollama:{name}", "folder", size, problem=_OLLAMA, path=path)
        for name, path, size in ollama_models()
    ]
    adapters = [model for model in local if model.kind == "adapter"]
    adapters += map(adapter_in, adapter_folders())
    models = sorted(
        (model for model in local if model.kind != "adapter"),
        key=lambda model: (model.problem is not None, model.kind != "bundled", model.name.lower()),
    )
    here = {model.name.partition("@")[0] for model in models}
    remote = [_remote(each, measured, memory) for each in catalogue().models if each.name not in here]
    return [*models, *sorted(adapters, key=lambda each: (each.problem is not None, each.name.lower())), *remote]


def adapter_in(folder: Path) -> UsableModel:
    """The entry of the adapter in a folder."""
    name = str(folder)
    return _readable(lambda: _adapter(folder, name), UsableModel(name, "adapter", 0))


def chosen_model(name: str, models: Iterable[UsableModel]) -> UsableModel:
    """The model of this name or title.

    Raises: ModelNotFoundError, naming the nearest, for none or several.
    """
    return _chosen(name, [model for model in models if model.kind != "adapter"], "model")


def chosen_adapter(name: str, models: Iterable[UsableModel]) -> UsableModel:
    """The adapter of this name or title. Raises: as `chosen_model`."""
    return _chosen(name, [model for model in models if model.kind == "adapter"], "adapter")


def described(found: Description) -> UsableModel:
    """The entry of a model that the hub describes, downloaded or not."""
    measured = speeds.load()
    shape = read_shape(found.config)
    size = sum(size for name, size in found.files if name.endswith(".safetensors"))
    return UsableModel(
        found.name,
        "bundled" if is_bundled(found.name) else "cached" if found.path else "catalogue",
        found.size_bytes,
        shape=shape,
        fit=fit(size, shape, measured.memory_limit or memory_limit()) if size else None,
        speed=measured.speed(found.name, None if shape.has_experts else size),
        path=found.path,
    )


def first_offer(model: str | None) -> list[UsableModel]:
    """Recommended models that fit, best first, at a first start with the bundled models alone; else none.

    `model` is the one that the user named. See `remember_offer`.
    """
    if model not in (None, BUNDLED) or _offered().exists():
        return []
    if not all(is_bundled(found.name) for found in list_models()):
        return []
    if any(_problem(folder) is None for folder in model_folders()):  # GGUF files are no models to chat with here
        return []
    measured = speeds.load()
    memory = measured.memory_limit or memory_limit()
    return [_remote(each, measured, memory) for each in best_for(memory)]


def _problem(folder: Path) -> str | None:
    try:
        return problem_of(folder)
    except OSError as error:
        return str(error)


def remember_offer() -> None:
    """Make no first offer again."""
    with suppress(OSError):
        _offered().parent.mkdir(parents=True, exist_ok=True)
        write_json(_offered(), {"version": 1})


def _offered() -> Path:
    return speeds.state_folder() / "offered.json"


def _readable(read: Callable[[], UsableModel], unread: UsableModel) -> UsableModel:
    """The entry that `read` returns; `unread` with the reason if files vanish or may not be read."""
    try:
        return read()
    except OSError as error:
        return replace(unread, problem=f"cannot be read: {error.strerror or error}")


def _chosen(name: str, models: Sequence[UsableModel], what: str) -> UsableModel:
    wanted = name.strip().rstrip("/")
    for key in (lambda model: model.name, lambda model: model.name.lower(), lambda model: model.title.lower()):
        found = [model for model in models if key(model) in (wanted, wanted.lower())]
        if len(found) == 1 or (found and len({model.name for model in found}) == 1):
            return found[0]
        if found:
            names = " or ".join(model.name for model in found[:3])
            raise ModelNotFoundError(f"Several models are called {wanted}.", remedy=names)
    titles = {model.title.lower(): model.name for model in models}
    near = difflib.get_close_matches(wanted.lower(), [*titles, *(model.name for model in models)], n=1, cutoff=0.4)
    nearest = titles.get(near[0], near[0]) if near else ""
    raise ModelNotFoundError(
        f"There is no {what} {wanted} here.",
        remedy=f"/{what} {nearest}" if nearest else f"/{what} lists them",
    )


def _cached(model: CachedModel, measured: Measurements, memory: int) -> UsableModel:
    bundled = is_bundled(model.name)
    name = model.name if bundled else str(ModelName(model.name, model.revision))
    if is_adapter(model.path):
        return _adapter(model.path, model.name, str(model.path))
    return _model(
        UsableModel(
            name,
            "bundled" if bundled else "cached",
            model.size_bytes,
            problem=model.problem,
            path=model.path,
            revision=model.revision,
            commit=model.commit,
            unfinished=model.problem is not None,
        ),
        measured,
        memory,
    )


def _folder(folder: Path, measured: Measurements, memory: int) -> UsableModel:
    problem = problem_of(folder)
    weights = list(folder.glob("*.gguf"))
    if problem and weights and not any(folder.glob("*.safetensors")):
        problem = _GGUF
    size = sum(path.stat().st_size for path in weights if path.is_file()) or sum(
        size for _, size in model_files(folder)
    )
    return _model(UsableModel(str(folder), "folder", size, problem=problem, path=folder), measured, memory)


def _model(model: UsableModel, measured: Measurements, memory: int) -> UsableModel:
    """The model with all that its files say."""
    assert model.path is not None
    config, problem = _config(model.path)
    problem = model.problem or problem
    shape = read_shape(config)
    weights = [(name, size) for name, size in model_files(model.path) if name.endswith(".safetensors")]
    if problem is None:
        problem = unsupported(config) or _damage(model.path, [name for name, _ in weights])
    if problem is None and shape.family in ENCODERS:
        problem = "an encoder, which does not chat"
    size = sum(size for _, size in weights)
    if problem is not None:
        return replace(model, shape=shape, problem=problem)
    speed = measured.speed(model.name, None if shape.has_experts else size)
    return replace(model, shape=shape, fit=fit(size, shape, memory), speed=speed)


def _remote(model: Recommended, measured: Measurements, memory: int) -> UsableModel:
    return UsableModel(
        model.name,
        "catalogue",
        model.size_bytes,
        shape=model.shape,
        fit=fit(model.size_bytes, model.shape, memory),
        speed=measured.speed(model.name, model.active_bytes),
        licence=model.licence,
        use=model.use,
    )


def _adapter(folder: Path, title: str, name: str = "") -> UsableModel:
    config: Mapping[str, Any] = {}
    problem = None
    try:
        found = read_json(folder / "adapter_config.json")
        config = found if isinstance(found, dict) else {}
        problem = None if config else "adapter_config.json is not an object"
    except (OSError, ValueError) as error:
        problem = f"adapter_config.json cannot be read: {error}"
    names = [name for name in ("adapters.safetensors", "adapter_model.safetensors") if (folder / name).is_file()]
    if problem is None:
        problem = _damage(folder, names[:1]) if names else "adapters.safetensors is missing"
    base = config.get("model") or config.get("base_model_name_or_path")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    return UsableModel(
        name or title, "adapter", size, problem=problem, path=folder, base=base if isinstance(base, str) else ""
    )


def _config(folder: Path) -> tuple[Mapping[str, Any], str | None]:
    """The config.json of a folder, and what is wrong with it."""
    path = folder / "config.json"
    if not path.is_file():
        return {}, "config.json is missing"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        return {}, f"config.json cannot be read: {error}"
    return (config, None) if isinstance(config, dict) else ({}, "config.json is not an object")


def _damage(folder: Path, names: Iterable[str]) -> str | None:
    """The first fault in the headers of weight files; None if there is none."""
    for name in names:
        try:
            read_header(folder / name)
        except MacllmError as error:
            return f"{name}: {error.cause or error.message}"
    return None
