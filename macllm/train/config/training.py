"""Settings common to all training runs."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast, get_args, get_origin

from macllm.errors import UsageError
from macllm.files import read_json
from macllm.generation.sampling.ranges import shown

from ..rows import is_dataset, pinned
from .batches import BatchSettings, MemorySettings
from .data import INPUTS, PATHS, DataSettings
from .optimizer import MomentSettings, RateSettings
from .reports import ReportSettings
from .setting_group import MOST, SMALLEST, Range
from .snapshots import SnapshotSettings
from .values import check_names, convert, naming, read_toml, settable

SETTINGS_NAME = "run.json"  # in a run's folder


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    SnapshotSettings, ReportSettings, MemorySettings, MomentSettings, RateSettings, BatchSettings, DataSettings
):
    """Settings common to all runs: data, batches, optimizer, schedule, reports, evaluation and snapshots."""

    _folder: ClassVar[str] = ""  # the field that names the run's folder
    # Fields that a resumed run may change: they have no effect on its final weights, or only through its rows and its
    # base, which are known by their fingerprints.
    _NO_EFFECT_ON_WEIGHTS: ClassVar[frozenset[str]] = frozenset(
        {
            "resume",
            "steps_per_report",
            "report_to",
            "save_every",
            "keep",
            "grad_checkpoint",
            "output",
            "adapter_path",
            "date",
        }
        | INPUTS
        | {"chat_feature", "prompt_feature", "completion_feature", "text_feature", "cache_gb", "pause_on_battery"}
    )

    def __post_init__(self) -> None:
        for name, choices in self.choices().items():
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} cannot be {value!r}", remedy=f"{name} = one of {', '.join(choices)}")
        self._check_texts()
        for name, low, high in self._ranges():
            value = getattr(self, name)
            if not low <= value <= high:
                between = f"it must be between {low:.10g} and {high:.10g}"
                raise UsageError(f"{name} cannot be {shown(value)}", cause=between)
        try:
            self.now  # noqa: B018
        except ValueError as error:
            raise UsageError(f"date cannot be {self.date!r}", cause=str(error), remedy="date = 2026-01-31") from error
        self._check_effects()
        if not self.data:
            raise UsageError("no training data", remedy="--data train.jsonl, or --resume with the folder of a run")

    def _check_texts(self) -> None:
        """Refuse empty texts where one is needed."""
        for name, default in self.defaults().items():
            value: Any = getattr(self, name)
            texts: tuple[Any, ...] = (
                cast("tuple[str, ...]", value) if isinstance(value, tuple) else (value,) * (default != "")
            )
            if any(isinstance(text, str) and not text.strip() for text in texts):
                raise UsageError(f"{name} cannot be empty", remedy=f"leave {name} out")

    def _ranges(self) -> list[Range]:
        """The ranges of all settings."""
        fixed = [one for kind in reversed(type(self).__mro__) for one in vars(kind).get("RANGES", ())]
        epochs = ("epochs", 0 if self.iters else SMALLEST, MOST)
        return [*fixed, epochs, ("warmup_init", -1.0 if self.warmup_init == -1 else 0.0, 1.0)]

    @classmethod
    def load(cls, path: Path | str | None = None, sets: tuple[str, ...] = (), **keywords: Any) -> Self:
        """The config from a file, then `key=value` strings, then keywords; a keyword of None is unset.

        The file is TOML, or for fine-tuning a YAML file of mlx-lm. Paths to read in a TOML file are relative to its
        folder. Raises UsageError on an unknown key or a wrong type.
        """
        types = {name: settable(kind) for name, kind in typing.get_type_hints(cls).items()}
        stored: dict[str, Any] = cls._read(Path(path)) if path is not None else {}
        with naming(path, stored):
            stored = {name: convert(name, value, types[name], parses=False) for name, value in stored.items()}
        given: dict[str, Any] = {}
        for text in sets:
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"cannot read {text!r}", remedy="--set key=value")
            given[name.strip()] = value.strip()
        given |= {k: v for k, v in keywords.items() if v is not None}
        check_names(cls, given, "given")
        given = {name: convert(name, value, types[name]) for name, value in given.items()}
        for together in (stored, given):
            _refuse_two_lengths(together)
        values = over(stored, given)
        resumed = {name: convert(name, value, types[name]) for name, value in cls._of_run(values).items()}
        values = _same_rows(resumed, values)
        with naming(path, stored.keys() - given):
            return cls(**{name: cls._expanded(name, value) for name, value in over(resumed, values).items()})

    @classmethod
    def _read(cls, path: Path) -> dict[str, Any]:
        """The settings in a file."""
        values = read_toml(path)
        check_names(cls, values, f"in {path}")
        if isinstance(day := values.get("date"), date):  # of TOML, without quotes
            values["date"] = day.isoformat()
        values = {name: cls._expanded(name, value) for name, value in values.items()}
        return {k: str(path.parent / v) if cls._is_path(k, v, path.parent) else v for k, v in values.items()}

    @classmethod
    def _expanded(cls, name: str, value: Any) -> Any:
        """The value; a path that begins with ~/ below the home folder."""
        is_path = name in INPUTS or name == cls._folder
        in_home = is_path and isinstance(value, str) and value.startswith("~/")
        return str(Path(value).expanduser()) if in_home else value

    @classmethod
    def _is_path(cls, name: str, value: Any, folder: Path) -> bool:
        """True for a path that a run reads and that is relative to the `folder` of the file with it."""
        return name in PATHS and isinstance(value, str) and value != "" and not is_dataset(value)

    @classmethod
    def _of_run(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings stored by the run that `values` resume; empty without a run to resume."""
        if not values.get("resume"):
            return {}
        defaults = cls.defaults()
        path = Path(values.get(cls._folder, defaults[cls._folder])) / SETTINGS_NAME
        try:
            read = read_json(path)
            if not isinstance(read, dict):
                raise ValueError(f"{SETTINGS_NAME} is not a JSON object")
        except FileNotFoundError:
            flag = f"--{cls._folder.replace('_', '-')}"
            raise UsageError(
                f"{path.parent} has no run to resume",
                cause=f"{path} does not exist",
                remedy=f"{flag} with the folder of a run, or --data train.jsonl without --resume for a new one",
            ) from None
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the settings of the run in {path.parent}", cause=str(error)) from error
        settings = cast("dict[str, Any]", read)
        if foreign := {"adapter_path", "output"} & settings.keys() - {cls._folder}:
            raise UsageError(f"{path.parent} has a run of another command", cause=f"{path} has {foreign.pop()}")
        others = ("resume", cls._folder)
        return {k: v for k, v in settings.items() if k in defaults and k not in others and v is not None}

    def dated(self) -> Self:
        """The config with a date: its own, that of the run that it resumes, or today's."""
        return dataclasses.replace(self, date=self.date or self._stored().get("date") or date.today().isoformat())

    def pinned(self) -> Self:
        """The config with the commits of its datasets.

        They are those of the run that it resumes, or the hub's current ones.
        """
        stored = self._stored()
        data, valid = (pinned(getattr(self, name), str(stored.get(name, ""))) for name in ("data", "valid"))
        return dataclasses.replace(self, data=data, valid=valid)

    def _stored(self) -> dict[str, Any]:
        return self._of_run({"resume": self.resume, self._folder: self.folder, "data": self.data})

    def rounding_changes(self) -> dict[str, tuple[Any, Any]]:
        """Settings of the run that this one resumes, and now, that change how the sums of a step are rounded."""
        stored, now = self._stored(), self.as_dict()
        names = ("batch_size", "grad_accumulation_steps")
        return {name: (stored[name], now[name]) for name in names if stored.get(name, now[name]) != now[name]}

    @property
    def folder(self) -> str:
        """The run directory, empty for a run without one."""
        return getattr(self, self._folder) if self._folder else ""

    @property
    def result(self) -> str:
        """The folder to use after the run."""
        return self.folder

    @classmethod
    @cache
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """The values of each field that takes one of a few texts, by name."""
        kinds = {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}
        return {name: get_args(kind) for name, kind in kinds.items() if get_origin(kind) is Literal}

    @classmethod
    def documentation(cls) -> dict[str, str]:
        """One line for each field, by name."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {f.name: get_args(hints[f.name])[1] for f in dataclasses.fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each field, by name."""
        return {f.name: f.default for f in dataclasses.fields(cls)}

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = dataclasses.asdict(self)
        return {k: list(cast("tuple[str, ...]", v)) if isinstance(v, tuple) else v for k, v in values.items()}

    def reproducibility_fields(self) -> dict[str, Any]:
        """The fields that determine the final weights of a run."""
        return {k: v for k, v in self.as_dict().items() if k not in self._NO_EFFECT_ON_WEIGHTS}


def over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them; a number of steps or epochs replaces both below."""
    lengths = ("iters", "epochs")
    if any(str(upper.get(name, 0)).strip("0.") for name in lengths):
        lower = {name: value for name, value in lower.items() if name not in lengths}
    return {**lower, **upper}


def _same_rows(resumed: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values of a resumed run whose steps keep their number of rows.

    Of micro-batch and accumulation, one that is given alone sets the other, also after the micro-batch was halved.
    """
    names = ("batch_size", "grad_accumulation_steps")
    given = [name for name in names if name in values]
    if len(given) != 1 or not all(name in resumed for name in names):
        return values
    rows, one = resumed[names[0]] * resumed[names[1]], values[given[0]]
    other = names[1 - names.index(given[0])]
    return {**values, other: rows // one} if one > 0 and rows % one == 0 else values


def _refuse_two_lengths(values: dict[str, Any]) -> None:
    """Refuse `iters` and `epochs` in one place; those of a command replace the other one of a recipe."""
    if (iters := values.get("iters")) and values.get("epochs"):
        raise UsageError(
            "epochs has no effect", cause=f"iters is {iters}: it gives the number of steps", remedy="leave one out"
        )
