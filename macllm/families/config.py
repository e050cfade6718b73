"""Reader of `config.json`: required values, activations, layer patterns, rotary positions.

Both spellings in the wild are read: `rope_theta` with `rope_scaling` (transformers 4) and
`rope_parameters`, flat or by kind of layer (transformers 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from macllm.errors import CheckpointError
from macllm.nn.position import rotation
from macllm.nn.spec import (
    Activation,
    BandScaling,
    DynamicScaling,
    HeadSpec,
    LinearScaling,
    LongScaling,
    RoPEScaling,
    RoPESpec,
    YarnScaling,
)

from . import spellings
from .defaults import DEFAULTS, complete

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu_squared",
    "tanh": "tanh",
}


_POSITION_TABLES = ("embed_positions.weight", "position_embeddings.weight")


class Config(Mapping[str, Any]):
    """A `config.json` with its class's defaults; a missing value raises a CheckpointError that names it.

    `names` are the names of its checkpoint's tensors, if there is a checkpoint: only these show if a model has a pooler
    or a head.
    """

    def __init__(self, raw: Mapping[str, Any], names: Iterable[str] | Mapping[str, Any] | None = None):
        self._raw = complete(raw)
        self.names = None if names is None else frozenset(names)
        # a copy, because loading empties the dict of tensors
        tensors = names.items() if isinstance(names, Mapping) else ()
        self._rows = {name: array.shape[0] for name, array in tensors if name.endswith(_POSITION_TABLES)}

    def __getitem__(self, key: str) -> Any:
        try:
            return self._raw[key]
        except KeyError:
            raise CheckpointError(
                f"config.json has no {key!r}",
                cause=f"{self._raw.get('model_type', 'the model')} requires it",
                remedy="download the checkpoint again, or add the value",
            ) from None

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` if it is absent or null."""
        value = self._raw.get(key)
        return default if value is None else value

    def has_tensor(self, suffix: str, *, default: bool) -> bool:
        """True if a tensor's name ends in `suffix`; `default` for a config without a checkpoint."""
        return default if self.names is None else any(name.endswith(suffix) for name in self.names)

    def positions(self, table: str, offset: int = 0) -> int:
        """Number of positions in the config, else rows of the checkpoint's `table` after `offset`."""
        stated = self.get("max_position_embeddings")
        if stated is not None:
            return stated
        rows = (count - offset for name, count in self._rows.items() if name.endswith(table))
        return next(rows, DEFAULTS[self["model_type"]]["max_position_embeddings"])

    def replace(self, **changes: Any) -> Config:
        """A copy with some values changed."""
        return Config({**self._raw, **changes}, self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def activation(name: str) -> Activation:
    """Our name of an activation. Raises CheckpointError for an unsupported one."""
    if str(name) not in ACTIVATIONS:
        raise CheckpointError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(config: Config, **unsupported: Any) -> None:
    """Raise CheckpointError if the config has one of these values, which this family does not support."""
    for key, value in unsupported.items():
        if config.get(key) == value:
            raise CheckpointError(f"{key} = {value!r} of config.json is not supported for {config['model_type']}")


def is_tied(config: Config, head: str = "lm_head") -> bool:
    """True if the config ties the head to the token embedding and the checkpoint has no separate head."""
    return config.get("tie_word_embeddings", False) and not config.has_tensor(f"{head}.weight", default=False)


def architecture(config: Mapping[str, Any]) -> str:
    """The class of transformers that wrote the checkpoint; "" if unknown."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else names
    return first if isinstance(first, str) else ""


def decoder_head(config: Config, softcap: float | None = None) -> HeadSpec | None:
    """The language-model head; None for a model without one (`LlamaModel`), such as an embedding model."""
    if not config.get("tie_word_embeddings") and not config.has_tensor("lm_head.weight", default=True):
        name = architecture(config)
        if name.endswith("Model") and not name.endswith("LMHeadModel"):
            return None
    return HeadSpec(tied=is_tied(config), softcap=softcap)


def layer_types(config: Config, default: list[str], known: Iterable[str]) -> list[str]:
    """The kind of each layer's attention: `layer_types` of the config, else `default`.

    Raises CheckpointError for a kind that is not in `known`, or a wrong number of layers.
    """
    listed = config.get("layer_types", default)
    kinds = sorted(known)
    if odd := [kind for kind in listed if kind not in kinds]:
        raise CheckpointError(
            f"layer_types of config.json has {odd[0]!r}; {config['model_type']} supports {', '.join(kinds)}"
        )
    if len(listed) != config["num_hidden_layers"]:
        raise CheckpointError(
            f"layer_types lists {len(listed)} layers, but num_hidden_layers is {config['num_hidden_layers']}"
        )
    return listed


def rope_parameters(config: Config, kind: str | None = None) -> dict[str, Any]:
    """The RoPE parameters of layers of one `kind`, in transformers 5's keys, with `rope_theta` filled in."""
    found: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"the rope parameters of config.json are {found!r}, not an object")
    if kind is not None and isinstance(found.get(kind), Mapping):
        found = found[kind]
    given = {key: _as_number(value) for key, value in found.items() if value is not None}
    base = spellings.first(config, spellings.BASES)
    given.setdefault("rope_theta", 10_000.0 if base is None else base)
    given["rope_type"] = spellings.rope_type(given)
    trained = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    given["original_max_position_embeddings"] = trained or config.get("max_position_embeddings")
    return given


def _as_number(value: Any) -> Any:
    """A number in a string as a number; other values unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def rope(config: Config, head_dim: int, parameters: dict[str, Any] | None = None) -> RoPESpec:
    """The RoPE of heads of which `head_dim` dimensions rotate."""
    p = rope_parameters(config) if parameters is None else parameters
    kind = p["rope_type"]
    try:
        made = RoPESpec(dims=head_dim, base=float(p["rope_theta"]), scaling=_scaling(config, p))
        # computed once here, so that invalid parameters are reported at loading
        for length in (0, 2**31):
            waves, _ = rotation(made, made.length_class(length))
            if not all(0 < wave < math.inf for wave in waves):
                raise ValueError("a wavelength is not positive and finite")
    except KeyError as missing:
        raise CheckpointError(f"rope parameters of type {kind!r} have no {missing}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        shown = {key: value for key, value in p.items() if not isinstance(value, list)}
        raise CheckpointError(f"rope parameters of type {kind!r} are invalid: {shown}", cause=str(error)) from None
    return made


def context_length(config: Mapping[str, Any]) -> int | None:
    """The context length of a model with RoPE, including RoPE scaling.

    `model_max_length` takes precedence over `max_position_embeddings`, as in vLLM: Command R supports more than the
    latter.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_kind = [value for value in scaling.values() if isinstance(value, Mapping)]
    before = {"original_max_position_embeddings": config.get("original_max_position_embeddings")}
    length = own_limit(config) or config.get("max_position_embeddings")
    return scaled_length(length, [before | dict(each) for each in by_kind or [scaling]])


def own_limit(config: Mapping[str, Any]) -> int | None:
    """The `model_max_length` of a config, in tokens; None for an impossible length such as 1e30."""
    limit = config.get("model_max_length")
    if isinstance(limit, str | float) and str(limit).removesuffix(".0").isdecimal():
        limit = int(float(limit))
    return limit if type(limit) is int and 1 <= limit < 2**31 else None


def scaled_length(length: int | None, rotations: Iterable[Mapping[str, Any]]) -> int | None:
    """The longest context length of these RoPE parameters, for a model with `length` in its config.

    As in vLLM (`config/model.py`): the original length * factor for YaRN, `length` * factor for linear and dynamic
    scaling, `length` for the others.
    """
    if not length:
        return None
    lengths = [length]
    for scaling in rotations:
        kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
        if kind in ("yarn", "linear", "dynamic") and factor:
            before = scaling.get("original_max_position_embeddings") if kind == "yarn" else None
            lengths.append(int(round((before or length) * float(factor), 6)))  # 48 * (100 / 48) is 100
    return max(lengths[1:], default=length)


def _scaling(config: Config, p: dict[str, Any]) -> RoPEScaling | None:
    trained = p["original_max_position_embeddings"]
    match p["rope_type"]:
        case "default":
            return None
        case "linear":
            return LinearScaling(float(p["factor"]))
        case "dynamic":
            return DynamicScaling(float(p["factor"]), config["max_position_embeddings"])
        case "llama3":
            return BandScaling(float(p["factor"]), p["low_freq_factor"], p["high_freq_factor"], trained)
        case "yarn":
            return _yarn(config, p, trained)
        case "longrope":
            return _longrope(config, p, trained)
        case unknown:
            known = "default, linear, dynamic, llama3, yarn, longrope"
            raise CheckpointError(f"rope_type {unknown!r} is not one of {known}")


def _yarn(config: Config, p: dict[str, Any], trained: int) -> YarnScaling:
    factor = p.get("factor") or config["max_position_embeddings"] / trained

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = p.get("attention_factor")
    if scale is None:
        one, all_dims = p.get("mscale"), p.get("mscale_all_dim")
        scale = magnitude(one) / magnitude(all_dims) if one and all_dims else magnitude(1.0)
    return YarnScaling(
        factor=float(factor),
        trained=trained,
        beta_fast=float(p.get("beta_fast") or 32),
        beta_slow=float(p.get("beta_slow") or 1),
        magnitude=scale,
        truncate=p.get("truncate", True),
    )


def _longrope(config: Config, p: dict[str, Any], trained: int) -> LongScaling:
    factor = p.get("factor") or config["max_position_embeddings"] / trained
    scale = p.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return LongScaling(short=tuple(p["short_factor"]), long=tuple(p["long_factor"]), trained=trained, magnitude=scale)
