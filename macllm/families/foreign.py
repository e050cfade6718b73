"""Models of other families, run by mlx-lm's classes behind the same protocol."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import CheckpointError, MacllmError, UsageError
from macllm.nn.info import ModelInfo
from macllm.weights.header import read_header
from macllm.weights.safetensors import load_folder, weight_files

from . import packing, spellings
from .defaults import check_real
from .foreign_fixes import OBEYED, apply_fixes
from .foreign_layout import KNOWN_WRONG, rearranged, respelled_for
from .foreign_rope import context_length, set_rotations

log = logging.getLogger("macllm")

_LEARNED_POSITIONS = ("gpt2", "gpt_bigcode")  # types whose class has learned position embeddings

# model_type -> mlx-lm's module, for types that mlx-lm's own table lacks
MODULES = {
    "gemma3n_text": "gemma3n",
    "muse_glimmer_text": "muse_glimmer",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5",
    "youtu": "youtu_llm",
}
# Type of a language model -> mlx-lm's module and class for its config, if that is not `ModelArgs`
TEXT_CLASSES = {
    "gemma3n_text": ("gemma3n", "TextConfig"),
    "gemma4_unified_text": ("gemma4_text", "ModelArgs"),
    "kimi_k25_text": ("kimi_k25", "TextConfig"),
    "minimax_m3_vl_text": ("minimax_m3_vl", "TextArgs"),
    "mistral": ("llama", "ModelArgs"),
    "qwen2_5_vl_text": ("qwen2", "ModelArgs"),
    "qwen2_vl_text": ("qwen2", "ModelArgs"),
    "qwen3_5_moe_text": ("qwen3_5", "TextModelArgs"),
    "qwen3_5_text": ("qwen3_5", "TextModelArgs"),
    "qwen3_vl_moe_text": ("qwen3_moe", "ModelArgs"),
    "qwen3_vl_text": ("qwen3", "ModelArgs"),
}
# Types whose class expects its config under `text_config`, also for a checkpoint of the language model alone
_WRAPPED = frozenset({"gemma3n_text", "qwen3_5_moe_text", "qwen3_5_text"})


# Types whose layers share keys with other layers through their caches only
_NEED_CACHES = frozenset({"gemma3n", "gemma3n_text"})


class ForeignLM(nn.Module):
    """A causal language model of mlx-lm. Its head is not separable: `hidden` returns logits."""

    def __init__(self, model: nn.Module, kind: str, info: ModelInfo):
        super().__init__()
        self.model, self.kind, self.info = model, kind, info

    def __call__(
        self, tokens: mx.array, cache: ForeignCache | None = None, lengths: mx.array | None = None
    ) -> mx.array:
        """Logits of the next token: (B, L) -> (B, L, V). Rows may be padded on the right.

        Raises CheckpointError if mlx-lm's class raises.
        """
        if cache is not None:
            cache.length += tokens.shape[1]
        elif self.kind in _NEED_CACHES:
            cache = self.make_cache()
        try:
            return self.model(tokens) if cache is None else self.model(tokens, cache=cache.layers)
        except (Exception, SystemExit) as error:
            raise _failed(self.kind, "runs", error) from error

    hidden = __call__

    def logits(self, hidden: mx.array) -> mx.array:
        """The output of `hidden`, unchanged."""
        return hidden

    def head_modules(self) -> list[nn.Module]:
        """No modules: `logits` uses no weights."""
        return []

    def make_cache(
        self,
        max_context: int | None = None,
        kv_bits: int | None = None,
        left_padding: Sequence[int] | None = None,
    ) -> ForeignCache:
        """An empty cache. Raises UsageError for options that mlx-lm's caches do not support."""
        from mlx_lm.models.cache import make_prompt_cache

        if kv_bits is not None:
            raise UsageError("a quantized cache needs a model of a supported family", remedy="leave kv_bits out")
        if left_padding is not None and any(left_padding):
            raise UsageError("padded rows need a model of a supported family", remedy="batches of one row")
        return ForeignCache(make_prompt_cache(self.model), max_context)


@dataclass
class ForeignCache:
    """mlx-lm's caches, one per layer, behind our protocol."""

    layers: list[Any]
    max_context: int | None = None
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes reserved in all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate to complete pending work on this cache."""
        return [layer.state for layer in self.layers]

    def nearest(self, length: int) -> int:
        """`length` if these caches can be cut to it, else 0."""
        from mlx_lm.models.cache import can_trim_prompt_cache

        return length if length == self.length or can_trim_prompt_cache(self.layers) else 0

    def cut(self, length: int) -> None:
        """Keep only the first `length` slots. Raises MacllmError if these caches cannot be cut."""
        from mlx_lm.models.cache import trim_prompt_cache

        if self.nearest(length) < length:
            raise MacllmError(f"this cache cannot be cut to {length} tokens", remedy="compute it again in a new cache")
        if length < self.length:
            trim_prompt_cache(self.layers, self.length - length)
        self.length = length

    def fork(self) -> ForeignCache:
        """An independent copy; arrays are shared until one of the two writes."""
        return copy.deepcopy(self)


def load_foreign(folder: Path, config: dict[str, Any]) -> ForeignLM:
    """The model of a folder whose `model_type` only mlx-lm supports; logs a warning.

    Raises CheckpointError for an unsupported type, for a config with options that mlx-lm's class ignores, and for
    a class whose logits are known to be wrong.
    """
    kind = str(config.get("model_type"))
    if kind in KNOWN_WRONG:
        raise _unsupported(kind, KNOWN_WRONG[kind])
    from mlx_lm.utils import _get_classes, load_model

    try:
        _get_classes({**config, "model_type": MODULES.get(kind, kind)})
    except (ValueError, AttributeError) as error:  # AttributeError: a module of mlx-lm without a model class
        raise _unsupported(kind) from error
    log.warning("macllm has no family for %s: mlx-lm's class runs it, without macllm's kernels", kind)

    text = text_config(config)
    try:
        spelled, classes = translated(config, text), cast(Any, _classes(config, text, folder))
        with _blank(folder) as blank:
            model, _ = load_model(blank, lazy=False, strict=True, model_config=spelled, get_model_classes=classes)
    except MacllmError:
        raise
    except (Exception, SystemExit) as error:
        failed = _failed(kind, "loads", error)
        names = [name for path in weight_files(folder) for name in read_header(path)]
        packing.explain(config, names, str(failed.cause))
        raise failed from error
    size = text.get("vocab_size") or spellings.completed(text).get("vocab_size")
    obeyed = _reads(text["model_type"]) - spellings.unread(text["model_type"])
    known = context_length(text), spellings.unread_window(text, obeyed)
    length = min((n for n in known if n), default=None)
    table = length if kind in _LEARNED_POSITIONS else None
    return ForeignLM(model, kind, ModelInfo(vocab_size=size, context_length=length, position_count=table))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model, with its `model_type`."""
    nested = config.get("text_config")
    if not isinstance(nested, dict):
        return config
    kept = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return {"model_type": f"{config.get('model_type')}_text", **nested, **kept}


def args_class(kind: str) -> type:
    """mlx-lm's config class for a language model of this type. Raises ValueError for an unknown type."""
    from mlx_lm.utils import _get_classes

    if kind in TEXT_CLASSES:
        module, name = TEXT_CLASSES[kind]
        return getattr(import_module(f"mlx_lm.models.{module}"), name)
    return _get_classes({"model_type": MODULES.get(kind, kind)})[1]


def _reads(kind: str) -> frozenset[str]:
    import dataclasses

    return frozenset(field.name for field in dataclasses.fields(args_class(kind)))


def translated(config: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """The whole config, with the language model's part in the keys of mlx-lm's class."""
    kind = text["model_type"]
    mended = OBEYED.get(kind, frozenset())
    made = respelled_for(kind, text, _reads(kind) | mended, spellings.unread(kind) - mended)
    for key, value in made.items():
        if isinstance(value, float):
            check_real(key, value)
    if text is not config:
        # Gemma 4's outer class reads this size from the outer config.
        return {**config, "text_config": made, "vocab_size": made.get("vocab_size")}
    if kind in _WRAPPED:
        return {"model_type": MODULES[kind], "text_config": made}
    return {**made, "model_type": MODULES.get(kind, kind)}


@contextmanager
def _blank(folder: Path) -> Iterator[Path]:
    """A temporary checkpoint folder without tensors for mlx-lm's loader; macllm loads the weights itself.

    mlx-lm's loader would read every file named model*.safetensors, also copies and files of other checkpoints.
    """
    with TemporaryDirectory(prefix="macllm-") as name:
        blank = Path(name)
        (blank / "config.json").write_text("{}", encoding="utf-8")
        mx.save_safetensors(str(blank / "model.safetensors"), {})
        beside = folder / "hf_quant_config.json"
        if beside.is_file():
            (blank / beside.name).write_bytes(beside.read_bytes())
        yield blank


def _classes(
    whole: dict[str, Any], text: dict[str, Any], folder: Path
) -> Callable[[dict], tuple[Callable[[Any], nn.Module], type]]:
    """A callback for mlx-lm's loader: its classes, with weights rearranged and RoPE corrected."""
    from mlx_lm.utils import _get_classes

    def classes(config: dict[str, Any]) -> tuple[Callable[[Any], nn.Module], type]:
        model_class, reader = _get_classes(config)

        def build(args: Any) -> nn.Module:
            theirs = model_class(args)
            set_rotations(theirs, text)
            apply_fixes(theirs, text["model_type"], text)
            sanitize = getattr(theirs, "sanitize", dict)
            tied = any(part.get("tie_word_embeddings") is not False for part in (whole, text))
            flags = (part.get("tie_word_embeddings") for part in (text, whole, spellings.completed(text)))
            sure = next((value for value in flags if value is not None), None) is True
            known = {**text, "tie_word_embeddings": tied, "surely_tied": sure}
            theirs.sanitize = lambda _: rearranged(load_folder(folder, small_floats=True), theirs, known, sanitize)
            return theirs

        return build, reader

    return classes


def _unsupported(kind: str, cause: str = "neither macllm nor mlx-lm has a class for it") -> CheckpointError:
    """The error for a family without a class, or with a wrong one."""
    return CheckpointError(
        f"model_type {kind!r} is not supported",
        cause=cause,
        remedy="a checkpoint of another family; macllm models ls lists downloaded models",
    )


def _failed(kind: str, does: str, error: BaseException) -> CheckpointError:
    """The CheckpointError for an exception of mlx-lm's class while it `does` ("loads" or "runs")."""
    if str(error).startswith("Model type ") and str(error).endswith(" not supported."):
        return _unsupported(kind)
    lines = str(error).strip().splitlines()
    message = " ".join(line.strip() for line in lines[:4])
    if not message or isinstance(error, KeyError | SystemExit | AssertionError | AttributeError | IndexError):
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return CheckpointError(
        f"macllm has no family for model_type {kind!r}, and mlx-lm's class for it fails as it {does}",
        cause=message,
        remedy="a checkpoint of another family; macllm models ls lists downloaded models",
    )
