"""Configs of `mlx_lm.lora` (YAML) as settings of fine-tuning, where both mean the same.

mlx-lm's defaults hold for keys that a file leaves out, so that it trains what it trained there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, cast

from macllm.errors import UsageError

from .reports import TRACKERS
from .values import nearest

SUFFIXES = (".yaml", ".yml")
_DEFAULTS: dict[str, Any] = {
    "model": "Qwen/Qwen3-0.6b",
    "seed": 0,
    "num_layers": 16,
    "batch_size": 4,
    "iters": 1000,
    "val_batches": 25,
    "learning_rate": 1e-5,
    "steps_per_report": 10,
    "steps_per_eval": 200,
    "adapter_path": "adapters",
    "save_every": 100,
    "max_seq_length": 2048,
    "grad_accumulation_steps": 1,
    "mask_prompt": False,
}
_SAME = {*_DEFAULTS, "grad_checkpoint", "data", "chat_feature", "prompt_feature", "completion_feature", "text_feature"}
_ALL_LAYERS = 1_000_000  # more than any model has
_ITERATIONS = ("iters", "steps_per_report", "steps_per_eval", "save_every")
_LORA_DEFAULTS: dict[str, Any] = {"rank": 8, "scale": 20.0, "dropout": 0.0}
# What mlx-lm's loop does without a key for it.
_ALWAYS: dict[str, Any] = {"max_grad_norm": 0.0, "warmup": 0.0, "schedule": "constant", "select": "last"}
_UNUSED = {"train", "test_batches", "config", "clear_cache_threshold", "trust_remote_code", "project_name"}
_NOTHING = ("iters", "learning_rate")  # 0 trains nothing there, and stands for a default here
_OFF: tuple[Any, ...] = (None, False, "", {}, [])
_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}
_ADAM: dict[str, str | tuple[str, str]] = {
    "betas": ("beta1", "beta2"),
    "eps": "epsilon",
    "weight_decay": "weight_decay",
}
# mlx-lm reads 1e-5 as a number, YAML 1.1 as a text; this is mlx-lm's pattern.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
_DATASET = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SCHEDULE_KEYS = {"name", "arguments", "warmup", "warmup_init"}


@dataclass(frozen=True)
class Translated:
    """Settings, and notes about those that have another name or form here."""

    values: dict[str, Any]
    notes: tuple[str, ...]


def read(path: Path) -> Translated:
    """The settings of a file. Raises: UsageError for no YAML, and for keys without an equal here."""
    try:
        import yaml
    except ImportError as error:
        raise UsageError(f"cannot read {path}", cause="PyYAML is missing", remedy="pip install pyyaml") from error
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except OSError as error:
        raise UsageError(f"cannot read the config {path}", cause=error.strerror) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        cause = ", ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"{path} is not YAML", cause=f"{where}{cause}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not YAML", cause=" ".join(str(error).split())) from error
    if not isinstance(raw, dict):
        cause = "it is empty" if raw is None else "it is not a mapping of keys to values"
        raise UsageError(f"{path} is no config of mlx-lm", cause=cause)
    return translate(cast("dict[str, Any]", raw), str(path))


@cache
def _loader() -> Any:
    """A loader with mlx-lm's numbers that refuses a key given twice, of which YAML keeps the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    loader: Any = Loader
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return loader


def translate(raw: dict[str, Any], where: str) -> Translated:
    """The settings of mlx-lm's keys. Raises: UsageError for those without an equal here."""
    given = {str(key): value for key, value in raw.items() if value is not None}
    values = {**_ALWAYS, **_DEFAULTS, **{key: value for key, value in given.items() if key in _SAME}}
    notes, refused = [f"{where} is read as mlx-lm reads it: its defaults hold for keys that it leaves out"], list[str]()
    for key, translated in _TRANSLATORS.items():
        try:
            changed = translated(given, values)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
            reason = str(error) if type(error) is ValueError else "it is malformed"
            refused.append(f"{key} ({reason})")
            continue
        if changed:
            notes.append(f"  {key}: {', '.join(f'{name} = {value}' for name, value in changed.items())}")
        values |= changed
    known = sorted(_SAME | _UNUSED | _TRANSLATORS.keys())
    refused += [
        f"{key} ({_unknown(key, known)})" for key, value in given.items() if key not in known and value not in _OFF
    ]
    refused += [f"{key} (0 trains nothing)" for key in _NOTHING if values[key] == 0]
    if refused:
        raise UsageError(
            f"{where} has keys of mlx-lm that macllm does not have",
            cause=", ".join(refused),
            remedy="change or remove them, or write a recipe: macllm recipe cp lora-chat",
        )
    if not _adam(given).get("bias_correction"):
        notes.append("  optimizer: moments are corrected for their bias, as with bias_correction: true")
    return Translated(values, tuple(notes))


def _unknown(key: str, known: list[str]) -> str:
    if key in (*_LORA_DEFAULTS, "keys"):
        return "it belongs into lora_parameters"
    near = nearest(key, known)
    return f"unknown; did you mean {near}?" if near else "unknown"


def _only(value: Any, allowed: tuple[Any, ...], reason: str) -> dict[str, Any]:
    if value not in allowed:
        raise ValueError(reason)
    return {}


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    return value


def _fine_tune_type(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    kind = given.get("fine_tune_type")
    _only(kind, (*_OFF, "lora", "dora", "full"), f"{kind}; lora, dora and full are trained")
    if kind != "full":
        return {"use_dora": True} if kind == "dora" else {}
    layers = values["num_layers"]  # the weights outside of layers stay frozen there
    return {"method": "full", "num_layers": layers if layers > 0 else _ALL_LAYERS}


def _lora(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    if values.get("method") == "full":  # which reads none of them
        return {}
    lora: dict[str, Any] = {**_LORA_DEFAULTS, **given.get("lora_parameters", {})}
    if unknown := sorted(lora.keys() - {*_LORA_DEFAULTS, "keys"}):
        raise ValueError(f"{', '.join(unknown)} unknown")
    keys: Any = lora.get("keys") or []
    if not isinstance(keys, list):
        raise ValueError(f"keys is {keys!r}, not a list")
    rank, scale, dropout = (_number(name, lora[name]) for name in _LORA_DEFAULTS)
    made: dict[str, Any] = {"rank": rank, "alpha": float(scale * rank), "dropout": float(dropout)}
    return made | ({"keys": [str(key) for key in cast("list[Any]", keys)]} if keys else {})


def _schedule(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    if not (schedule := given.get("lr_schedule")):
        return {}
    name, steps, warmup = schedule["name"], values["iters"], schedule.get("warmup", 0)
    if unknown := sorted(schedule.keys() - _SCHEDULE_KEYS):
        raise ValueError(f"{', '.join(unknown)} unknown")
    if name not in _SCHEDULES:
        raise ValueError(f"{name} is neither of {', '.join(_SCHEDULES)}")
    if name == "cosine_decay":
        peak, decay_steps, low = (*schedule["arguments"], 0.0)[:3]
    else:
        peak, low, decay_steps = schedule["arguments"]
    if warmup and warmup + 1 > steps:
        raise ValueError(f"it warms up over {warmup} steps of a run of {steps}")
    rising = warmup + 1 if warmup else 0  # mlx-lm's warm-up begins at warmup_init, and two steps have the peak
    made = {
        "schedule": _SCHEDULES[name],
        "learning_rate": float(peak),
        "min_lr_ratio": low / peak,
        "warmup": _share(rising, steps),
        "decay_steps": int(decay_steps),
    }
    return made | ({"warmup_init": schedule.get("warmup_init", 0.0) / peak} if rising else {})


def _share(count: int, steps: int) -> float:
    """The shortest decimal that times `steps`, rounded up, is `count`."""
    parts = (count * 10**digits // steps / 10**digits for digits in range(18))  # rounded up, it would be count + 1
    return next(part for part in parts if math.ceil(Fraction(str(part)) * steps) == count)


def _updates(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers of iterations as numbers of optimizer steps: an iteration of mlx-lm is a micro-batch."""
    size = values["grad_accumulation_steps"]
    if size == 1 or not isinstance(size, int):
        return {}
    if size > values["iters"]:
        raise ValueError(f"{values['iters']} iterations make no step of {size}")
    return {name: max(1, values[name] // size) for name in _ITERATIONS if values[name]}


def _adam(given: dict[str, Any]) -> dict[str, Any]:
    """The options of the optimizer that is used; mlx-lm does not read those of others."""
    options: dict[str, Any] = given.get("optimizer_config") or {}
    return options.get(_optimizer_name(given)) or {}


def _optimizer_name(given: dict[str, Any]) -> str:
    return str(given.get("optimizer") or "adam").lower()


def _optimizer_config(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for option, value in _adam(given).items():
        if option == "bias_correction":
            continue
        if option not in _ADAM:
            raise ValueError(f"{option} unknown")
        target = _ADAM[option]
        names = target if isinstance(target, tuple) else (target,)
        made |= dict(zip(names, value if isinstance(target, tuple) else (value,), strict=True))
    return made


def _optimizer(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    name = _optimizer_name(given)
    _only(name, ("adam", "adamw"), f"{given.get('optimizer')}; adam and adamw are read")
    return {"weight_decay": 0.01} if name == "adamw" else {}


def _data(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    data = given.get("data")
    is_name = isinstance(data, str) and _DATASET.fullmatch(data) and not Path(data).exists()
    return {"data": f"hf:{data}"} if is_name else {}


def _report_to(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    names = [name.strip() for name in str(given.get("report_to") or "").split(",") if name.strip()]
    for name in names:
        _only(name, TRACKERS, f"{name} is not reported to")
    return {"report_to": names} if names else {}


def _refusing(key: str, allowed: tuple[Any, ...], reason: str) -> _Translator:
    """A translator of a key that may have only some values."""
    return lambda given, _: _only(given.get(key), (*_OFF, *allowed), reason.format(given.get(key)))


_Translator = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
_TRANSLATORS: dict[str, _Translator] = {
    "fine_tune_type": _fine_tune_type,
    "grad_accumulation_steps": lambda _, values: _updates(values),  # first: the others read the steps
    "data": _data,
    "lora_parameters": _lora,
    "lr_schedule": _schedule,
    "optimizer": _optimizer,
    "optimizer_config": _optimizer_config,
    "resume_adapter_file": _refusing("resume_adapter_file", (), "an adapter is not trained on"),
    "test": _refusing("test", (), "no test follows a run"),
    "report_to": _report_to,
}
