"""Default sampling values of a model on this machine, with their origins."""

from __future__ import annotations

import dataclasses
import logging

from macllm.errors import MacllmError
from macllm.families.generation import generation_config
from macllm.files import read_json
from macllm.generation.sampling import config_file
from macllm.generation.sampling.defaults import OURS, defaults
from macllm.hub import resolve

from .settings import DEFAULT, Resolved

log = logging.getLogger("macllm")


def model_defaults(model: str | None) -> dict[str, Resolved]:
    """The default sampling values of a model by key. None: the bundled model.

    Those of a model that is not on this machine are macllm's, with a warning in the log.
    """
    try:
        folder = resolve(model, offline=True)
        config = read_json(folder / "config.json")
        path = folder / "generation_config.json"
        file = read_json(path) if path.is_file() else None
        kind = str((config.get("text_config") or config).get("model_type"))
        found = generation_config(config, file, kind)
    except (MacllmError, OSError, ValueError, AttributeError) as error:
        log.warning("the defaults of %s are unknown: %s", model, getattr(error, "message", error))
        found, file, config = {}, None, {}
    named = config_file.read(found).sampling
    sampling = defaults(found, encoder_decoder=bool(config.get("is_encoder_decoder")))
    source = f"{'generation_config.json' if file is not None else 'config.json'} of {model or 'maclet'}"
    return {
        f"sampling.{field.name}": Resolved(value, source if field.name in named or value != _ours(field) else DEFAULT)
        for field in dataclasses.fields(sampling)
        for value in [getattr(sampling, field.name)]
    }


def _ours(field: dataclasses.Field[object]) -> object:
    return getattr(OURS, field.name)
