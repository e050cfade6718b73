"""Configs of `mlx_lm.lora` (YAML) as settings of fine-tuning, where both mean the same.

mlx-lm's defaults hold for keys that a file leaves out, so that it trains what it trained there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from macllm.errors import UsageError

from .trackers import TRACKERS

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
    "grad_checkpoint": False,
    "grad_accumulation_steps": 1,
    "mask_prompt": False,
}
_SAME = {*_DEFAULTS, "data", "chat_feature", "prompt_feature", "completion_feature", "text_feature"}
_ALL_LAYERS = 1_000_000  # more than any model has
_ITERATIONS = ("iters", "steps_per_report", "steps_per_eval", "save_every")
_LORA_DEFAULTS: dict[str, Any] = {"rank": 8, "scale": 20.0, "dropout": 0.0}
# What mlx-lm's loop does without a key for it.
_ALWAYS: dict[str, Any] = {"max_grad_norm": 0.0, "warmup": 0.0, "schedule": "constant", "select": "last"}
_UNUSED = {"train", "test_batches", "config", "clear_cache_threshold", "trust_remote_code", "project_name"}
_OFF: tuple[Any, ...] = (None, False, "", {}, [])
_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}
_ADAM: dict[str, str | tuple[str, str]] = {
    "betas": ("beta1", "beta2"),
    "eps": "epsilon",
    "weight_decay": "weight_decay",
}


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
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config {path}", cause=error.strerror) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not YAML", cause=" ".join(str(error).split())) from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} is no config of mlx-lm", cause="it is not a mapping of keys to values")
    return translate(cast("dict[str, Any]", raw), str(path))


def translate(raw: dict[str, Any], where: str) -> Translated:
    """The settings of mlx-lm's keys. Raises: UsageError for those without an equal here."""
    given = {str(key): _number(value) for key, value in raw.items()}
    values = {**_ALWAYS, **_DEFAULTS, **{key: value for key, value in given.items() if key in _SAME}}
    notes, refused = [f"{where} is read as mlx-lm reads it: its defaults hold for keys that it leaves out"], list[str]()
    for key, translated in _TRANSLATORS.items():
        try:
            changed = translated(given.get(key), values)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            reason = str(error) if type(error) is ValueError else "it is malformed"
            refused.append(f"{key} ({reason})")
            continue
        if changed:
            notes.append(f"  {key}: {', '.join(f'{name} = {value}' for name, value in changed.items())}")
        values |= changed
    if not _corrects_bias(given):
        notes.append("  optimizer: moments are corrected for their bias, as with bias_correction: true")
    known = _SAME | _UNUSED | _TRANSLATORS.keys()
    refused += [f"{key} (unknown)" for key, value in given.items() if key not in known and value not in _OFF]
    if refused:
        raise UsageError(
            f"{where} has keys of mlx-lm that macllm does not have",
            cause=", ".join(refused),
            remedy="remove them, or write a recipe: macllm recipe cp lora-chat",
        )
    return Translated({name: value for name, value in values.items() if value is not None}, tuple(notes))


def _number(value: Any) -> Any:
    """mlx-lm reads 1e-5 as a number, YAML 1.1 as a text."""
    if isinstance(value, dict):
        return {key: _number(each) for key, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_number(each) for each in cast("list[Any]", value)]
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _only(value: Any, allowed: tuple[Any, ...], reason: str) -> dict[str, Any]:
    if value not in allowed:
        raise ValueError(reason)
    return {}


def _fine_tune_type(given: Any, values: dict[str, Any]) -> dict[str, Any]:
    _only(given, (*_OFF, "lora", "dora", "full"), f"{given}; lora, dora and full are trained")
    if given != "full":
        return {"use_dora": True} if given == "dora" else {}
    layers = values["num_layers"]  # the weights outside of layers stay frozen there
    return {"method": "full", "num_layers": layers if layers > 0 else _ALL_LAYERS}


def _lora(given: Any, values: dict[str, Any]) -> dict[str, Any]:
    if values.get("method") == "full":  # which reads none of them
        return {}
    lora: dict[str, Any] = {**_LORA_DEFAULTS, **cast("dict[str, Any]", given or {})}
    if unknown := sorted(lora.keys() - {*_LORA_DEFAULTS, "keys"}):
        raise ValueError(f"{', '.join(unknown)} unknown")
    keys = [str(key) for key in lora.get("keys") or ()]
    made: dict[str, Any] = {
        "rank": lora["rank"],
        "alpha": float(lora["scale"] * lora["rank"]),
        "dropout": float(lora["dropout"]),
    }
    return made | ({"keys": keys} if keys else {})


def _schedule(given: Any, values: dict[str, Any]) -> dict[str, Any]:
    if not given:
        return {}
    name, steps, warmup = given["name"], values["iters"], given.get("warmup", 0)
    if name not in _SCHEDULES:
        raise ValueError(f"{name} is neither of {', '.join(_SCHEDULES)}")
    if name == "cosine_decay":
        peak, decay_steps, low = (*given["arguments"], 0.0)[:3]
    else:
        peak, low, decay_steps = given["arguments"]
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
    return made | ({"warmup_init": given.get("warmup_init", 0.0) / peak} if rising else {})


def _share(count: int, steps: int) -> float:
    """The shortest decimal that times `steps`, rounded up, is `count`."""
    parts = (round(count / steps, digits) for digits in range(18))
    return next(part for part in parts if math.ceil(Fraction(str(part)) * steps) == count)


def _updates(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers of iterations as numbers of optimizer steps: an iteration of mlx-lm is a micro-batch."""
    size = values["grad_accumulation_steps"]
    if size == 1 or not isinstance(size, int):
        return {}
    if size > values["iters"]:
        raise ValueError(f"{values['iters']} iterations make no step of {size}")
    return {name: max(1, values[name] // size) for name in _ITERATIONS if values[name]}


def _optimizer_config(given: Any, values: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, options in cast("dict[str, dict[str, Any]]", given or {}).items():
        if not options or name not in ("adam", "adamw"):
            _only(options, _OFF, f"{name} has options")
            continue
        for option, value in options.items():
            if option == "bias_correction":
                continue
            target = _ADAM[option]
            names = target if isinstance(target, tuple) else (target,)
            made |= dict(zip(names, value if isinstance(target, tuple) else (value,), strict=True))
    return made


def _corrects_bias(given: dict[str, Any]) -> bool:
    """True if mlx-lm's optimizer corrects its moments for their bias, as ours does."""
    options = given.get("optimizer_config")
    if not isinstance(options, dict):
        return False
    own = cast("dict[str, Any]", options).get(given.get("optimizer") or "adam")
    return isinstance(own, dict) and cast("dict[str, Any]", own).get("bias_correction") is True


def _optimizer(given: Any, values: dict[str, Any]) -> dict[str, Any]:
    _only(given, (*_OFF, "adam", "adamw"), f"{given}; adam and adamw are read")
    return {"weight_decay": 0.01} if given == "adamw" else {}


def _report_to(given: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = [name.strip() for name in str(given or "").split(",") if name.strip()]
    for name in names:
        _only(name, TRACKERS, f"{name} is not reported to")
    return {"report_to": names} if names else {}


_TRANSLATORS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "fine_tune_type": _fine_tune_type,
    "grad_accumulation_steps": lambda _, values: _updates(values),  # first: the others read the steps
    "lora_parameters": _lora,
    "lr_schedule": _schedule,
    "optimizer": _optimizer,
    "optimizer_config": _optimizer_config,
    "resume_adapter_file": lambda given, _: _only(given, _OFF, "an adapter is not trained on"),
    "test": lambda given, _: _only(given, _OFF, "no test follows a run"),
    "report_to": _report_to,
}
