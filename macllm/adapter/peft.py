"""LoRA adapters in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

Tensors are `base_model.model.<module of transformers>.lora_A.weight` (r, D) and `.lora_B.weight` (F, r), and DoRA's
magnitudes `.lora_magnitude_vector` (F,). Those of stacked experts are described in `parameters`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import filterfalse
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from macllm import files
from macllm.errors import CheckpointError
from macllm.hub.files import refuse_pointers
from macllm.nn.lora import Update, Whole
from macllm.weights.safetensors import load_file, save_file

from . import parameters
from .names import EMBEDDING, HEAD

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLED = "adapter_model.bin"
CLASSIFIER = "classifier"
"""The head of transformers' encoders that classify."""
_PATHS = ("/", ".", "~")  # first characters of a folder's path, which no name on the hub has
_PREFIX = "base_model.model."
_ROOTS = ("model.", "lm_head")  # of names that checkpoints and the modules of transformers share
_FOREIGN = ("model.h.",)  # a stack of mlx-lm's classes that transformers calls otherwise
# Parts of names, by model type, that modules of transformers 5 do not have.
_OTHER = {
    "granitemoe": (".router.layer",),
    "granitemoehybrid": (".router.layer",),
    "kimi_linear": (".f_a_proj", ".f_b_proj"),
    "laguna": (".mlp.shared_expert.", ".mlp.gate.proj"),
    "lfm2_moe": (".feed_forward.gate_proj", ".feed_forward.up_proj", ".feed_forward.down_proj"),
    "phimoe": (".block_sparse_moe.",),
}
_OF_VISION = "model.language_model."  # of models that have other parts too
# Layers, by model type, whose weights transformers takes without a call of the module.
_UNCALLED = {"jamba": (".dt_proj",), "longcat_flash": (".classifier",)}
_SCALED = "falcon_h1"  # mlx-lm's class multiplies its weights by factors that transformers applies to activations
_A, _B, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
# of an embedding: (r, V) and (D, r); peft stores its base with them
_OF_EMBEDDINGS = {"lora_embedding_A": _A, "lora_embedding_B": _B}
_TYING, _TARGETS = "ensure_weight_tying", "target_parameters"
_TABLE = ".base_layer.weight"
# what names in state dicts have more than those in files: the adapter's name, and the magnitudes' own module
_MORE = re.compile(
    r"(?<=\.lora_[AB])\.default(?=\.weight$)"
    r"|(?<=\.lora_embedding_[AB])\.default$"
    r"|(?<=\.lora_magnitude_vector)(\.default)?(\.weight)?$"
)
# embedding and head that are not adapted, which peft stores after a resize, or for `save_embedding_layers`
_BESIDE = re.compile(r"(^|\.)(embed_tokens|wte|lm_head)\.weight$")

# Settings that change what the tensors mean, or add tensors of other kinds, with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    **dict.fromkeys(
        ("lora_bias", "trainable_token_indices", "layer_replication", "use_qalora", "use_bdlora",
         "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
        (None, False, [], {}),
    ),
}  # fmt: skip

# The last two are of its first versions.
FIELDS = frozenset(
    ("model", _TARGETS, _TYING, *_UNSUPPORTED, "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
     "task_type", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout",
     "fan_in_fan_out", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern",
     "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
     "lora_ga_config", "use_dora", "qalora_group_size", "runtime_config", "enable_lora", "merge_weights")
)  # fmt: skip
"""Fields of PEFT's configs that macllm knows."""

# Initializations that leave the base as it is. Others, such as PiSSA, take a part of the base's weights out of it; an
# adapter that peft converts while saving has `true`.
_SOUND_STARTS = ("gaussian", "eva", "orthogonal", "mica")


def holds_adapter(folder: Path) -> bool:
    """True if `folder` has an adapter of PEFT and none of mlx-lm's format."""
    return (folder / WEIGHTS).is_file() and not (folder / "adapters.safetensors").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The config, with the base's name under `model`. Raises CheckpointError for an unsupported one."""
    refuse_pointers(folder)
    path = folder / CONFIG
    try:
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
        alphas = cast("dict[str, Any]", config.get("alpha_pattern") or {})
        for value in (config["lora_alpha"], *alphas.values()):
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError("lora_alpha and those of alpha_pattern must be finite numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a LoRA config of PEFT", cause=str(error)) from error
    settings = cast("dict[str, Any]", config)
    for name in (*_UNSUPPORTED, _TARGETS):
        if name in settings and not _is_harmless(name, settings[name]):
            raise CheckpointError(
                f"{folder} has an adapter of PEFT that macllm cannot apply",
                cause=f"{name} is {json.dumps(settings[name])[:200]}",
                remedy="merge it with peft (merge_and_unload, save_pretrained) and load the merged model",
            )
    _refuse_changed_base(folder, settings.get("init_lora_weights"))
    return {**settings, "model": _base(settings.get("base_model_name_or_path"), settings.get("revision"))}


def _base(name: object, revision: object) -> object:
    """The base as org/name@revision; the revision in the config is the base's, and a folder has none."""
    if not isinstance(name, str) or not isinstance(revision, str) or not revision:
        return name
    is_folder = name.startswith(_PATHS) or Path(name).is_dir()
    return name if is_folder or "@" in name else f"{name}@{revision}"


def base_fields(model: str | None) -> dict[str, Any]:
    """The fields of the config that name the base, a folder or org/name@revision."""
    if model is None or model.startswith(_PATHS):
        return {"base_model_name_or_path": model}
    name, _, revision = model.partition("@")
    return {"base_model_name_or_path": name, "revision": revision or None}


def _is_harmless(name: str, value: object) -> bool:
    return parameters.readable(value) if name == _TARGETS else value in _UNSUPPORTED[name]


def _refuse_changed_base(folder: Path, start: object) -> None:
    """Raise CheckpointError for an adapter whose initialization changed the base that it was trained on."""
    if start is None or isinstance(start, bool) or (isinstance(start, str) and start.lower() in _SOUND_STARTS):
        return
    raise CheckpointError(
        f"{folder} has an adapter that belongs to a changed base",
        cause=f"init_lora_weights is {json.dumps(start)[:200]}, which takes a part of the weights out of the base",
        remedy="save it with peft's path_initial_model_for_weight_conversion, or save the merged model",
    )


def read(folder: Path, config: Mapping[str, Any]) -> dict[str, Update | Whole]:
    """The change of each module of transformers, or of each parameter that target_parameters names.

    Raises CheckpointError for tensors that are not part of a LoRA adapter of linear layers.
    """
    leaves = {_A: 2, _B: 2} | ({_MAGNITUDE: 1} if config.get("use_dora") else {})
    found: dict[str, dict[str, mx.array]] = {}
    whole: dict[str, Whole] = {}
    for stored, tensor in load_file(folder / WEIGHTS).items():
        if _is_table(stored, config):
            continue
        if "lora_" not in stored and _is_saved(module := stored.rpartition(".")[0].removeprefix(_PREFIX), config):
            whole.setdefault(module, Whole({})).tensors[stored.rpartition(".")[2]] = tensor
            continue
        name = _renamed(stored)
        module, leaf = next(((name.removesuffix(f".{leaf}"), leaf) for leaf in leaves if name.endswith(leaf)), ("", ""))
        if not module or tensor.ndim != leaves[leaf]:
            raise CheckpointError(f"{folder / WEIGHTS}: {name} is not a factor of a linear layer")
        found.setdefault(parameters.named(module.removeprefix(_PREFIX), config), {})[leaf] = tensor
    # PEFT ties an embedding of another name only if the head is named too
    ends = "" if HEAD in found or HEAD in (config.get("target_modules") or ()) else EMBEDDING
    updates: dict[str, Update] = {}
    for module, tensors in found.items():
        if absent := [leaf for leaf in leaves if leaf not in tensors]:
            one = "has no magnitudes" if absent == [_MAGNITUDE] else "has one factor only"
            raise CheckpointError(f"{folder / WEIGHTS}: {module} {one}")
        head = bool(config.get(_TYING)) and module.endswith(ends)
        updates[module] = _update(module, tensors, config)._replace(head=head)
    if not updates:
        raise CheckpointError(f"{folder / WEIGHTS} has no tensors, so the adapter changes nothing")
    _check_ranks(folder, updates, config)
    if config.get("modules_to_save") and not whole:
        raise CheckpointError(f"{folder / WEIGHTS} lacks {', '.join(config['modules_to_save'])} of modules_to_save")
    return {**updates, **whole}


def _update(name: str, tensors: Mapping[str, mx.array], config: Mapping[str, Any]) -> Update:
    a, b = tensors[_A], tensors[_B]
    if parameters.is_stack(name):
        rank = _of_pattern(config.get("rank_pattern") or {}, name, config.get("r", 8))
        update = parameters.unflattened(name, a, b, rank, config)
    else:
        update = Update(a.T, b.T, magnitude=tensors.get(_MAGNITUDE))
    rank = update.a.shape[1]
    alpha = _of_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return update._replace(scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _is_saved(module: str, config: Mapping[str, Any]) -> bool:
    """True for a module in one of those that the adapter stores whole, or a head that is tied to one."""
    patterns = tuple(config.get("modules_to_save") or ())
    words = module.split(".")
    outer = (".".join(words[: n + 1]) for n in range(len(words)))
    return any(each.endswith(patterns) for each in outer) or (bool(patterns) and bool(config.get(_TYING)))


def _check_ranks(folder: Path, updates: Mapping[str, Update], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a rank other than the config's, by which peft scales."""
    for name, update in updates.items():
        rank = update.a.shape[1]
        if (wanted := _of_pattern(config.get("rank_pattern") or {}, name, config.get("r", rank))) != rank:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has rank {rank}, not {wanted}",
                cause=f"{CONFIG} gives that rank, by which the update is scaled",
                remedy="the config and the tensors of one adapter",
            )


def _is_table(name: str, config: Mapping[str, Any]) -> bool:
    """True for a matrix of the base."""
    module = name.removeprefix(_PREFIX).removesuffix(".weight")
    return name.endswith(_TABLE) or (bool(_BESIDE.search(name)) and not _is_saved(module, config))


def _renamed(name: str) -> str:
    """The name in files, and a factor of an embedding as that of a linear layer."""
    name = _MORE.sub("", name)
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_OF_EMBEDDINGS[leaf]}" if leaf in _OF_EMBEDDINGS else name


def tables(folder: Path, config: Mapping[str, Any]) -> dict[str, mx.array]:
    """The matrices of the base that are stored with the adapter, by module of transformers."""
    stored = load_file(folder / WEIGHTS).items()
    found = {name: tensor for name, tensor in stored if _is_table(name, config)}
    return {n.removesuffix(".weight").removesuffix(".base_layer").removeprefix(_PREFIX): t for n, t in found.items()}


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern, a regular expression, that matches the end of the module's name."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(f"{CONFIG}: {pattern!r} is not a valid pattern", cause=str(error)) from error
    return default


def save(
    theirs: Mapping[str, Update | Whole],
    about: Mapping[str, Any],
    folder: Path,
    embeddings: Collection[str] = (),
    tied: Collection[str] = (),
) -> None:
    """Write changes by module or parameter of transformers, each file atomically.

    Ranks and scales may differ. `about` has fields of the config: those that the model decides. `embeddings` are the
    adapted modules that are no linear layers, `tied` the changed ones that are the head too. Raises CheckpointError for
    what PEFT would not load.
    """
    whole = {name: change for name, change in theirs.items() if isinstance(change, Whole)}
    theirs = {name: change for name, change in theirs.items() if isinstance(change, Update)}
    _check_savable(theirs)
    tensors = {f"{_PREFIX}{name}.{leaf}": array for name, each in whole.items() for leaf, array in each.tensors.items()}
    tensors |= {f"{_PREFIX}{HEAD}.weight": whole[name].tensors["weight"] for name in tied if name in whole}
    for name, update in theirs.items():
        leaves = tuple(_OF_EMBEDDINGS) if name in embeddings else (_A, _B)
        factors = parameters.flattened(update) if update.a.ndim == 3 else (update.a.T, update.b.T)
        module = parameters.module_of(name, theirs) if parameters.is_parameter(name) else name
        tensors |= {f"{_PREFIX}{module}.{leaf}": factor for leaf, factor in zip(leaves, factors, strict=True)}
        if update.magnitude is not None:
            tensors[f"{_PREFIX}{name}.{_MAGNITUDE}"] = update.magnitude
    config = {
        **_config(theirs, about),
        "target_modules": sorted({*filterfalse(parameters.is_parameter, theirs), *_named_heads(tied, theirs)}),
        **({_TYING: all(theirs[name].head for name in embeddings)} if embeddings or tied else {}),
        **({"modules_to_save": sorted({*map(_outermost, whole), *_named_heads(tied, whole)})} if whole else {}),
    }
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    files.write_json(folder / CONFIG, config)


def _outermost(module: str) -> str:
    """The module that PEFT copies whole for one that is stored: of a head that classifies, it takes all."""
    return CLASSIFIER if module.startswith(f"{CLASSIFIER}.") else module


def _named_heads(tied: Collection[str], changed: Collection[str]) -> list[str]:
    """The head, if PEFT ties a changed embedding to it only where both are named."""
    return [HEAD] if any(name in changed and not name.endswith(EMBEDDING) for name in tied) else []


def _config(theirs: Mapping[str, Update], about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the config that low-rank updates decide."""
    ranks = {name: update.a.shape[1] for name, update in theirs.items()}
    alphas = {name: update.scale * ranks[name] for name, update in theirs.items()}
    (rank, _), (alpha, _) = (Counter(numbers.values()).most_common(1)[0] for numbers in (ranks, alphas))
    targets = sorted(filter(parameters.is_parameter, theirs))
    return {
        "peft_type": "LORA",
        **about,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "use_dora": any(update.magnitude is not None for update in theirs.values()),
        # PEFT has no dropout of an update that it adds to the weights
        "lora_dropout": 0.0 if targets else about["lora_dropout"],
        **({_TARGETS: targets, "peft_version": parameters.VERSION} if targets else {}),
        "bias": "none",
        "inference_mode": True,
    }


def refuse_names(names: Collection[str], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for layers that transformers names otherwise or PEFT cannot adapt."""
    for name in names:
        if cause := _obstacle(name, config):
            raise CheckpointError(
                "the adapter cannot be written in PEFT's format",
                cause=f"{name} {cause}",
                remedy="keep the adapter in mlx-lm's format, merge it, or train one without that layer",
            )


def _obstacle(name: str, config: Mapping[str, Any]) -> str | None:
    """The reason why PEFT would not apply an update of the named layer."""
    kind = str(config.get("model_type"))
    foreign = _FOREIGN if "text_config" in config else (*_FOREIGN, _OF_VISION)
    if not name.startswith(_ROOTS) or name.startswith(foreign) or _has_part(name, _OTHER.get(kind, ())):
        return "is a name of the checkpoint, which transformers gives the module under another one"
    if _has_part(name, _UNCALLED.get(kind, ())):
        return f"has no effect in PEFT, as transformers' {kind} takes its weights without a call of the layer"
    if kind == _SCALED:
        return f"is of {kind}, whose weights mlx-lm's class multiplies by factors that PEFT does not know"
    return None


def _has_part(name: str, parts: Collection[str]) -> bool:
    return any(part in name for part in parts)


def _check_savable(updates: Mapping[str, Update]) -> None:
    """Raise CheckpointError for what PEFT would not load."""
    has_magnitudes = any(update.magnitude is not None for update in updates.values())
    for name, update in updates.items():
        if parameters.is_parameter(name) and has_magnitudes:
            raise CheckpointError(
                f"PEFT cannot adapt {name} beside DoRA",
                cause="it is a parameter to PEFT, not a linear layer, and DoRA holds for the whole adapter",
                remedy="keep the adapter in mlx-lm's format",
            )
        if update.a.ndim == 3 and not parameters.is_stack(name):
            raise CheckpointError(
                f"{name} is a stack of experts, whose name in transformers is not known for this family",
                remedy="keep the adapter in mlx-lm's format",
            )
