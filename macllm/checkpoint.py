"""Loading and saving of model folders in the layouts of the hub, transformers and mlx-lm."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from macllm import families, files, hub
from macllm.errors import CheckpointError, ModelNotFoundError, UsageError
from macllm.families import packing
from macllm.families.config import Config
from macllm.families.defaults import DEFAULTS
from macllm.families.generation import decoder_start, generation_config
from macllm.hub import blend
from macllm.nn import lora, quantize
from macllm.nn.info import ModelInfo
from macllm.nn.linear import Embedding, Linear
from macllm.nn.models import Model, build
from macllm.nn.moe import ExpertLinear
from macllm.nn.spec import EncoderDecoderSpec, ModelSpec
from macllm.ops import cpu
from macllm.ops.linear import HALVES, supports_half_weights
from macllm.ops.quantized import supports_half_scales
from macllm.weights.keymap import KeyMap, Weights, our_modules, their_modules, to_ours, to_theirs
from macllm.weights.safetensors import load_folder, read_metadata, save_folder, weight_files
from macllm.weights.ties import resolve_ties

if TYPE_CHECKING:
    from macllm.families.foreign import ForeignLM
    from macllm.text.tokenizer import Tokenizer

log = logging.getLogger("macllm")

_CALL = 'macllm.load(), macllm.load("org/name") or macllm.load("folder", adapter="folder")'
_SAVING = "macllm.save(model, tokenizer, folder)"
# M1 and M2, whose GPUs run bfloat16 in software.
_EMULATES_BFLOAT16 = ("applegpu_g13", "applegpu_g14")
_FLOATS = (mx.bfloat16, mx.float16, mx.float32)


def load(
    name: str | Path | None = None,
    adapter: str | Path | Sequence[str | Path] | Mapping[str | Path, float] | None = None,
    dtype: mx.Dtype | None = None,
) -> tuple[Any, Tokenizer]:
    """The model and the tokenizer of a folder or of "org/name@revision"; None: the bundled ones.

    `adapter` is a folder with a LoRA adapter to apply, several such folders, whose updates are added, or a weight for
    each; "a + b:0.5" says the same in one text. `macllm.adapter.activate` exchanges them later. `dtype` is the type of
    floating-point weights. Without it, an Apple GPU keeps the stored type (float16 for bfloat16 on chips that only
    emulate it); a CPU uses float32, but keeps 16-bit matrices of linear layers, experts and embeddings, and 16-bit
    quantization scales, if its kernels can read them. Raises ModelNotFoundError, CheckpointError, NetworkError, and
    UsageError for arguments of wrong types.
    """
    from macllm.text.tokenizer import Tokenizer

    _check_arguments(name, adapter, dtype)
    folder = hub.resolve(None if name is None else str(name))
    model = load_model(folder, dtype)
    if adapter is not None:
        from macllm.adapter import attach_blend

        attach_blend(model, _weights(adapter), folder)
    return model, Tokenizer.from_folder(folder)


def _weights(adapter: str | Path | Sequence[str | Path] | Mapping[str | Path, float]) -> dict[str, float]:
    """Weights of adapters by folder, of any form that `load` takes."""
    if isinstance(adapter, Mapping):
        return blend.once([(str(folder), weight) for folder, weight in adapter.items()])
    return blend.parse_all([str(adapter)] if isinstance(adapter, str | Path) else map(str, adapter))


def _check_arguments(name: object, adapter: object, dtype: object) -> None:
    from macllm.text.messages import kind_of

    several: list[object] = []
    if isinstance(adapter, list | tuple | Mapping):
        several = list(cast("Sequence[object] | Mapping[object, object]", adapter))
        if not several:
            raise UsageError("The adapter is empty.", remedy="adapter=None for none")
        for weight in cast("Mapping[object, object]", adapter).values() if isinstance(adapter, Mapping) else ():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UsageError("A weight of an adapter is not a finite number.", remedy='adapter={"a": 1, "b": 0.5}')
    for what, value in (("name", name), *(("adapter", one) for one in several or [adapter])):
        if value is not None and not isinstance(value, str | Path):
            raise UsageError(f"The {what} is {kind_of(value)}, not a string or a path.", remedy=_CALL)
    if dtype is not None and not isinstance(dtype, mx.Dtype):
        raise UsageError(f"The dtype is {kind_of(dtype)}, not an MLX type.", remedy="dtype=mx.float16, for example")


def load_model(folder: Path, dtype: mx.Dtype | None = None, config: dict[str, Any] | None = None) -> Model | ForeignLM:
    """The model in `folder` with its weights, or another `config` in place of its config.json.

    It is one of mlx-lm's classes if no family supports its `model_type`.
    """
    config = config or read_config(folder)
    # Before tensors are read: those of another quantization tool have names and dtypes that no model has.
    packing.refuse(config, frozenset() if families.is_known(config) else packing.OF_MLX_LM)
    if not families.is_known(config):
        from macllm.families.foreign import load_foreign

        model, own = load_foreign(folder, config), config
    else:
        model = assemble(config, load_folder(folder), _layout(folder, config), dtype)
        own = _own_config(config, model)
    path = folder / "generation_config.json"
    try:
        file = _read_json(path) if path.is_file() else None
    except CheckpointError as error:  # config.json has most of its fields
        log.warning("%s; it is ignored", error.message)
        file = None
    info = _described(model.info, own, generation_config(config, file, str(own.get("model_type"))))
    model.info = replace(info, folder=folder)
    model.eval()
    return model


def assemble(
    config: dict[str, Any], tensors: Weights, layout: families.Layout = "hf", dtype: mx.Dtype | None = None
) -> Model:
    """The model that `config` describes, with the weights in `tensors`; the dict is emptied.

    Raises CheckpointError if the two do not match.
    """
    text = families.text_config(config)
    quantization = packing.mlx_parameters(config)
    if quantization is None:
        packing.refuse(config)
        packing.refuse_names(tensors)
    packing.drop_cache_scales(tensors)
    stored = Config(text, tensors)
    renamed = resolve_ties(tensors, families.keys(stored, layout))
    reader = Config(stored, tensors)
    keymap = families.keys(reader, layout)
    ours = to_ours(tensors, keymap, written_by=families.architecture(config))
    tensors.clear()  # frees each expert's own tensor, now copied into a stack
    model = build_model(families.spec(reader), str(text["model_type"]))
    if quantization:
        named = {renamed.get(theirs, theirs): value for theirs, value in quantization.items()}
        overrides = {mine: value for theirs, value in named.items() for mine in our_modules(theirs, keymap)}
        quantize.prepare(model, ours, quantization, overrides)
    _check(model, ours, keymap)
    if mx.default_device() == mx.cpu:
        cpu.prepare_for(*_parameters(ours, quantization))
    if dtype is not None:
        _fill(model, ours, dict.fromkeys(_FLOATS, dtype))
    else:
        casts = default_casts(text["model_type"])
        widens = mx.float32 in casts.values()
        _fill(model, ours, casts, _as_stored(model) if widens else frozenset())
    model.eval()
    return model


def build_model(spec: ModelSpec, kind: str) -> Model:
    """The modules of a spec. Raises CheckpointError for impossible sizes."""
    try:
        return build(spec)
    except (TypeError, ValueError, ArithmeticError) as error:
        message = f"config.json does not describe a valid {kind} model"
        raise CheckpointError(message, cause=str(error), remedy="download the checkpoint again") from error


def _parameters(weights: Weights, quantization: Mapping[str, Any] | None) -> tuple[int, int]:
    """The number of unquantized and of quantized parameters."""
    bits = (quantization or {}).get("bits", 4)
    floats = sum(array.size for array in weights.values() if array.dtype in _FLOATS)
    return floats, sum(array.nbytes * 8 // bits for array in weights.values() if array.dtype == mx.uint32)


def default_casts(model_type: str) -> dict[mx.Dtype, mx.Dtype]:
    """Stored dtype -> dtype in memory on this machine; dtypes not listed stay."""
    if mx.default_device() == mx.cpu:
        return dict.fromkeys(_FLOATS, mx.float32)
    chip = str(mx.device_info().get("architecture", ""))
    if chip.startswith(_EMULATES_BFLOAT16) and model_type not in families.OUTGROWS_FLOAT16:
        return {mx.bfloat16: mx.float16}
    return {}


def _as_stored(model: Model) -> frozenset[str]:
    """Names of the tensors that stay in 16 bits although activations are float32: the kernels read them."""
    names: list[str] = []
    matrices, scales = supports_half_weights(), supports_half_scales()
    for path, module in model.named_modules():
        if isinstance(module, Linear | Embedding | ExpertLinear) and matrices:
            names.append(f"{path}.weight")
        if isinstance(module, quantize.QUANTIZED) and module.mode == "affine" and scales:
            names += [f"{path}.scales", f"{path}.biases"]
    return frozenset(names)


def stored_types(folder: Path) -> dict[str, mx.Dtype]:
    """The types of a checkpoint's tensors by name; the weights are not read."""
    return {name: array.dtype for name, array in load_folder(folder).items()}


def check_family(model: Model) -> None:
    """Raise UsageError for a model that `save` cannot write, as one of mlx-lm's classes."""
    config = dict(model.info.config)
    if not families.is_known(config):
        kind = config.get("model_type")
        raise UsageError("only models of a supported family can be saved", cause=f"model_type is {kind!r}")


def save(
    model: Model, tokenizer: Tokenizer | None, folder: str | Path, types: Mapping[str, mx.Dtype] | None = None
) -> Path:
    """Write a checkpoint that mlx-lm and transformers open (a quantized one: mlx-lm). Returns the folder.

    `types` are the types of its floating-point tensors by name, others have the most common one; without them, all keep
    their values. Raises UsageError for a model with an adapter applied, CheckpointError for a number that its type
    cannot hold, DoesNotFitError on a full disk.
    """
    from macllm.text.messages import kind_of
    from macllm.text.tokenizer import Tokenizer

    if isinstance(model, Tokenizer):
        raise UsageError("The model and the tokenizer are swapped.", remedy=_SAVING)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise UsageError(f"The tokenizer is {kind_of(tokenizer)}, not a macllm tokenizer.", remedy=_SAVING)
    if not isinstance(folder, str | Path):
        raise UsageError(f"The folder is {kind_of(folder)}, not a string or a path.", remedy=_SAVING)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", remedy="another name")
    check_family(model)
    config = dict(model.info.config)
    quantization = quantize.describe(model)
    ours = dict(tree_flatten(model.parameters()))
    if lora.changed(model):
        raise UsageError("this model has an adapter applied", remedy="macllm fuse, or macllm.nn.lora.fuse(model)")
    keymap = families.keys(Config(config, ours), "mlx" if quantization else "hf")
    try:
        theirs = to_theirs(ours, keymap)
        theirs = _narrowed(theirs) if types is None else _rounded(theirs, types)
    except ValueError as error:
        raise UsageError(
            "layers that are one tensor in the checkpoint have different precisions",
            cause=str(error),
            remedy="merge adapters with macllm fuse or macllm.adapter.merge.merge, which store such layers alike",
        ) from error
    # mlx-lm writes the recipe twice, and reads either; auto_map names Python code that is not saved, nor needed.
    for name in ("quantization", "quantization_config", "auto_map"):
        config.pop(name, None)
    if quantization:
        whole, parts = quantization
        named = {name: value for path, value in parts.items() for name, _ in their_modules(path, keymap)}
        config["quantization"] = whole | named
    else:
        config["dtype"] = str(max(theirs.values(), key=lambda array: array.nbytes).dtype).removeprefix("mlx.core.")
    folder.mkdir(parents=True, exist_ok=True)
    save_folder(theirs, folder, {"format": "mlx" if quantization else "pt"})
    files.write_json(folder / "config.json", config)
    if generation := dict(model.info.generation_config):
        files.write_json(folder / "generation_config.json", generation)
    if tokenizer is not None:
        tokenizer.save(folder)
    return folder


def _narrowed(tensors: Weights) -> Weights:
    """The tensors in the 16-bit type that some of them have, wherever the cast is exact."""
    halves = [array.dtype for array in tensors.values() if array.dtype in HALVES]
    if not halves:
        return tensors
    dtype = max(set(halves), key=halves.count)
    return {n: _exactly(array, dtype) if array.dtype in _FLOATS else array for n, array in tensors.items()}


def _rounded(tensors: Weights, types: Mapping[str, mx.Dtype]) -> Weights:
    """The tensors in these types. Raises CheckpointError for a number that its type cannot hold."""
    floats = {name: dtype for name, dtype in types.items() if dtype in _FLOATS}  # others are of packed words
    default = next((dtype for dtype, _ in Counter(floats.values()).most_common(1)), mx.float32)
    out = {n: array.astype(floats.get(n, default)) if array.dtype in _FLOATS else array for n, array in tensors.items()}
    for name, array in out.items():
        if array.dtype == mx.float16 and not mx.isfinite(array).all():
            raise CheckpointError(f"{name} has numbers that are too large for float16", remedy="a base in bfloat16")
    return out


def _exactly(array: mx.array, dtype: mx.Dtype) -> mx.array:
    narrow = array.astype(dtype)
    return narrow if mx.array_equal(narrow.astype(array.dtype), array) else array


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelNotFoundError without one, CheckpointError for an invalid one."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelNotFoundError(
                f"{folder} is an adapter, not a model",
                remedy=f"--adapter {folder}, and --model with the model it was trained on unless that is maclet",
            )
        raise ModelNotFoundError(
            f"{folder} is not a model: it has no config.json", remedy="macllm models ls lists downloaded models"
        )
    config = _read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CheckpointError(
            f"{path} does not name the model's family",
            cause="it has no model_type" if kind is None else f"its model_type is {kind!r}, not a name",
            remedy="download the model again, or add the model_type",
        )
    return config


def _own_config(config: dict[str, Any], model: Model) -> dict[str, Any]:
    """The text config with its quantization, and untied if the file stores embedding and head."""
    text = dict(families.text_config(config))
    if quantization := packing.mlx_parameters(config):
        text["quantization"] = quantization
    spec = model.spec
    # In an encoder-decoder the flag also decides how T5 scales.
    untied = not isinstance(spec, EncoderDecoderSpec) and spec.head is not None and not spec.head.tied
    if untied and (DEFAULTS[text["model_type"]] | text)["tie_word_embeddings"]:
        text["tie_word_embeddings"] = False
    return text


def _layout(folder: Path, config: Mapping[str, Any]) -> families.Layout:
    if packing.mlx_parameters(config):
        return "mlx"
    return "mlx" if read_metadata(weight_files(folder)[0]).get("format") == "mlx" else "hf"


def _check(model: Model, ours: Weights, keymap: KeyMap) -> None:
    """Raise CheckpointError, in the checkpoint's names, if `ours` do not match the model's tensors."""
    expected = dict(tree_flatten(model.parameters()))
    missing, unknown = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
    if missing or unknown:
        wrong = missing or unknown
        which = ", ".join(_their_name(name, keymap) for name in wrong[:8])
        count = f"{len(wrong)} {'missing' if missing else 'unexpected'} tensor{'s' * (len(wrong) != 1)}"
        raise CheckpointError(
            f"{count} in the checkpoint: {which}",
            cause="weights and config.json do not belong together, or a shard is missing",
            remedy="download the checkpoint again",
        )
    for name, array in ours.items():
        if array.shape != expected[name].shape:
            raise CheckpointError(
                f"{_their_name(name, keymap)} has shape {array.shape}; config.json implies {expected[name].shape}",
                remedy="download the checkpoint again",
            )


def _their_name(ours: str, keymap: KeyMap) -> str:
    """The checkpoint's name for one of our tensors, or for the tensor that contains it."""
    module, _, leaf = ours.rpartition(".")
    theirs = [name for name, _ in their_modules(module, keymap)]
    return f"{theirs[0]}.{leaf}" if theirs else ours


def _fill(
    model: Model, ours: Weights, casts: Mapping[mx.Dtype, mx.Dtype], as_stored: frozenset[str] = frozenset()
) -> None:
    """Move `ours` into the model one by one, so that at most one tensor is in memory in two types."""
    for name in list(ours):
        array = ours.pop(name)
        if name not in as_stored or array.dtype not in HALVES:
            array = array.astype(casts.get(array.dtype, array.dtype))
        model.load_weights([(name, array)], strict=False)
        mx.eval(array)


def _described(info: ModelInfo, config: Mapping[str, Any], generation: dict[str, Any]) -> ModelInfo:
    """`info` with the fields that come from the checkpoint's JSON files."""
    ends = generation.get("eos_token_id")
    return replace(
        info,
        config=MappingProxyType(dict(config)),
        generation_config=MappingProxyType(generation),
        eos=frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        decoder_start=decoder_start(generation),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = files.read_json(path)
    except ValueError as error:
        cause, remedy = files.wrong_content(path) or (str(error), "download it again")
        raise CheckpointError(f"{path} is not JSON", cause=cause, remedy=remedy) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object", remedy="download it again")
    return value
