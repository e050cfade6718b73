"""Settings common to all training runs."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from macllm.errors import UsageError
from macllm.files import read_json
from macllm.generation.sampling.ranges import shown

from ..rows import Columns, is_dataset, pinned
from .optimizer import OptimizerName, unread
from .trackers import TRACKERS
from .values import check_names, convert, naming, read_toml, settable

Schedule = Literal["constant", "linear", "cosine", "wsd"]
SETTINGS_NAME = "run.json"  # in a run's folder
LongRows = Literal["truncate", "split", "drop", "error"]
Select = Literal["best", "last"]
SMALLEST = 1e-30  # well above the smallest positive number of float32
BELOW_ONE = 1.0 - 2.0**-24  # the largest number below 1 in float32
# Paths that a run reads; paths that it writes are relative to the current directory.
PATHS = frozenset({"data", "valid", "config", "tokenizer"})
INPUTS = PATHS | {"model", "teacher"}  # what a run reads, by path or name


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings common to all runs: data, batches, optimizer, schedule, reports, evaluation and snapshots."""

    data: Annotated[
        str, "rows: a file, a folder with train.jsonl, valid.jsonl, or hf:name[:config][@revision][/split]"
    ] = ""
    valid: Annotated[
        str, "rows to evaluate on, as data; empty: valid.jsonl or val.jsonl of the data folder, if any"
    ] = ""
    valid_fraction: Annotated[float, "share of the rows held out for evaluation when there is no validation file"] = 0.0
    max_seq_length: Annotated[int, "longest row, in tokens"] = 2048
    long_rows: Annotated[LongRows, "how to handle longer rows; the numbers are reported"] = "truncate"
    mask_prompt: Annotated[bool, "train on assistant turns and completions only, not on prompts"] = True
    chat_feature: Annotated[str, "column of conversations"] = "messages"
    prompt_feature: Annotated[str, "column of prompts"] = "prompt"
    completion_feature: Annotated[str, "column of completions"] = "completion"
    text_feature: Annotated[str, "column of texts"] = "text"
    cache_gb: Annotated[float, "size limit in GB of the cache of encoded rows of all runs; 0: no cache"] = 4.0
    date: Annotated[str, "date that chat templates write, as 2026-01-31; empty: that of the run's first day"] = ""

    batch_size: Annotated[int, "rows per micro-batch"] = 4
    packing: Annotated[
        bool, "several examples in each row of max_seq_length tokens, none sees another; batch_size counts rows"
    ] = False
    grad_accumulation_steps: Annotated[int, "number of micro-batches per optimizer step"] = 1
    iters: Annotated[int, "optimizer steps; 0: determined by `epochs`"] = 0
    epochs: Annotated[float, "passes over the data, when `iters` is 0"] = 3.0
    seed: Annotated[int, "random seed of row order, initial weights and dropout"] = 0

    optimizer: Annotated[
        OptimizerName, "adamw, muon (of hidden matrices; AdamW of the rest) or lion (a third of the rate or less)"
    ] = "adamw"
    learning_rate: Annotated[float, "peak learning rate"] = 2e-4
    schedule: Annotated[Schedule, "learning-rate schedule after warm-up (wsd: constant, then linear decay)"] = "cosine"
    warmup: Annotated[float, "share of the steps over which the learning rate rises from 0"] = 0.03
    warmup_init: Annotated[
        float, "relative rate of the first step; the last step of warm-up is at the peak; -1: evenly between"
    ] = -1.0
    decay_steps: Annotated[int, "cosine, linear: steps from peak to final rate; 0: up to the last step"] = 0
    decay: Annotated[float, "share of the steps over which a wsd schedule decays"] = 0.2
    min_lr_ratio: Annotated[float, "final learning rate, relative to the peak"] = 0.1
    adamw_rate: Annotated[float, "muon: peak learning rate of the weights of AdamW; 0: learning_rate"] = 0.0
    embedding_rate: Annotated[float, "peak learning rate of embeddings; 0: as other weights"] = 0.0
    layer_decay: Annotated[float, "learning rate of a layer relative to that of the next; 1: the same"] = 1.0
    beta1: Annotated[float, "AdamW: decay of the mean of the gradients; lion: its share in a step"] = 0.9
    beta2: Annotated[float, "AdamW: decay of the mean of the squared gradients"] = 0.999
    epsilon: Annotated[float, "AdamW: added to the denominator of the update"] = 1e-8
    momentum: Annotated[float, "muon, lion: decay of the mean of the gradients; 0: 0.95 for muon, 0.99 for lion"] = 0.0
    first_moment_bits: Annotated[int, "adamw, lion: bits of the mean of the gradients of matrices, 32 or 8"] = 32
    weight_decay: Annotated[float, "decoupled weight decay"] = 0.0
    decay_all: Annotated[bool, "decay norms, biases and embeddings too"] = False
    max_grad_norm: Annotated[float, "clip gradients to this global norm; 0: no clipping"] = 1.0
    grad_checkpoint: Annotated[
        bool | None, "compute layers again for the gradients: less memory, a third slower; unset: once memory is full"
    ] = None

    steps_per_report: Annotated[int, "steps between two reports of loss and speed"] = 10
    report_to: Annotated[tuple[str, ...], "send reports to wandb, tensorboard or both; empty or none: to nobody"] = ()
    steps_per_eval: Annotated[int, "steps between two evaluations; 0: only before the first and after the last"] = 200
    val_batches: Annotated[int, "number of micro-batches per evaluation; -1: all"] = -1
    save_every: Annotated[int, "steps between two snapshots; 0: only at the end"] = 100
    keep: Annotated[int, "number of newest snapshots to keep, in addition to the best"] = 2
    select: Annotated[Select, "weights to export: best on validation data (last without any), or last"] = "best"
    resume: Annotated[bool, "resume the run in the folder, with its own settings"] = False
    spike_threshold: Annotated[
        float, "a loss or gradient norm this many deviations above the median is a spike; 0: none is"
    ] = 0.0
    spike_patience: Annotated[int, "spikes in a row before going back to the last good snapshot"] = 3
    rollbacks: Annotated[
        int, "times to go back and skip steps, after spikes or a gradient that is not finite; then an error"
    ] = 3
    pause_on_battery: Annotated[bool, "save and wait while the machine runs on its battery"] = False

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
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "long_rows": get_args(LongRows),
        "optimizer": get_args(OptimizerName),
        "schedule": get_args(Schedule),
        "select": get_args(Select),
    }

    def __post_init__(self) -> None:
        for name, choices in self._choices.items():
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} cannot be {value!r}", remedy=f"{name} = one of {', '.join(choices)}")
        self._check_texts()
        if self.first_moment_bits not in (8, 32):
            raise UsageError(f"first_moment_bits cannot be {self.first_moment_bits}", remedy="8 or 32")
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
        """Refuse empty texts where one is needed, and unknown trackers."""
        for name, default in self.defaults().items():
            value: Any = getattr(self, name)
            texts: tuple[Any, ...] = (
                cast("tuple[str, ...]", value) if isinstance(value, tuple) else (value,) * (default != "")
            )
            if any(isinstance(text, str) and not text.strip() for text in texts):
                raise UsageError(f"{name} cannot be empty", remedy=f"leave {name} out")
        for name in self.trackers:
            if name not in TRACKERS:
                cause = "it stands alone" if name == "none" else None
                remedy = f"some of {', '.join(TRACKERS)}, or none"
                raise UsageError(f"report_to cannot be {shown(name)}", cause=cause, remedy=remedy)

    def _check_effects(self) -> None:
        """Refuse values that would change nothing, or contradict each other."""
        default = self.defaults()
        cause = f"optimizer is {self.optimizer}"
        unused = {
            "decay": (self.decay != default["decay"] and self.schedule != "wsd", f"schedule is {self.schedule}"),
            "min_lr_ratio": (
                self.min_lr_ratio != default["min_lr_ratio"] and self.schedule == "constant",
                "schedule is constant",
            ),
            "warmup_init": (self.warmup_init >= 0 and not self.warmup, "warmup is 0"),
            "decay_steps": (
                self.decay_steps > 0 and self.schedule not in ("linear", "cosine"),
                f"schedule is {self.schedule}",
            ),
            "decay_all": (self.decay_all and not self.weight_decay, "weight_decay is 0"),
            "spike_patience": (
                self.spike_patience != default["spike_patience"] and not self.spike_threshold,
                "spike_threshold is 0",
            ),
            "spike_threshold": (
                bool(self.spike_threshold) and not self.save_every,
                "save_every is 0: no snapshot is kept to go back to",
            ),
            "valid_fraction": (self.valid_fraction > 0 and bool(self.valid), f"valid is {self.valid}"),
            **{name: (getattr(self, name) != default[name], cause) for name in unread(self.optimizer)},
        }
        for name, (has_none, cause) in unused.items():
            if has_none:
                raise UsageError(f"{name} has no effect", cause=cause, remedy=f"leave {name} out")
        if self.schedule == "wsd" and Fraction(str(self.warmup)) + Fraction(str(self.decay)) > 1:
            raise UsageError(
                "warmup and decay overlap",
                cause=f"they are {self.warmup} and {self.decay} of the steps, together over 1",
            )

    def _ranges(self) -> list[tuple[str, float, float]]:
        most = float(2**31)
        at_least_one = ("batch_size", "grad_accumulation_steps", "steps_per_report", "keep", "spike_patience")
        at_least_none = ("iters", "seed", "decay_steps", "steps_per_eval", "save_every", "weight_decay")
        at_least_none += ("max_grad_norm", "spike_threshold", "rollbacks")
        rates = ("adamw_rate", "embedding_rate")
        return [
            ("max_seq_length", 2, most),  # the first token is not predicted
            *((name, 1, most) for name in at_least_one),
            *((name, 0, most) for name in (*at_least_none, *rates)),
            *((name, 0.0, 1.0) for name in ("warmup", "decay", "min_lr_ratio")),
            *((name, 0.0, BELOW_ONE) for name in ("beta1", "beta2", "momentum")),
            *((name, SMALLEST, most) for name in ("learning_rate", "epsilon")),
            ("epochs", 0 if self.iters else SMALLEST, most),
            ("warmup_init", -1.0 if self.warmup_init == -1 else 0.0, 1.0),
            ("valid_fraction", 0.0, 0.9),
            ("cache_gb", 0.0, 1e6),
            ("layer_decay", SMALLEST, 1.0),
            ("val_batches", -1, most),
        ]

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
    def now(self) -> datetime | None:
        """The time that chat templates write, None without a date."""
        return datetime.fromisoformat(self.date) if self.date else None

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that get reports."""
        return () if self.report_to == ("none",) else tuple(dict.fromkeys(self.report_to))

    @property
    def columns(self) -> Columns:
        """The names of the columns of rows."""
        return Columns(self.chat_feature, self.prompt_feature, self.completion_feature, self.text_feature)

    @property
    def folder(self) -> str:
        """The run directory, empty for a run without one."""
        return getattr(self, self._folder) if self._folder else ""

    @property
    def result(self) -> str:
        """The folder to use after the run."""
        return self.folder

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
