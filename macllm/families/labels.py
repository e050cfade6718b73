"""Heads of transformers' classes for classification: their specs, configs and tensor names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from macllm.errors import CheckpointError, UsageError
from macllm.nn.models import DecoderLM, EncoderLM
from macllm.nn.put_labels import put_label_head
from macllm.nn.spec import DecoderSpec, EncoderSpec, LabelSpec, ModelSpec
from macllm.weights.keymap import KeyMap, Rule

from .config import Config, activation, architecture

Task = Literal["sequence", "token"]
"""One label for a text, or one for each of its words."""

# model_type -> the first word of the classes
_CLASSES = {
    "bert": "Bert",
    "big_bird": "BigBird",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "gpt2": "GPT2",
    "llama": "Llama",
    "longformer": "Longformer",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "olmo2": "Olmo2",
    "phi3": "Phi3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "roberta": "Roberta",
}
_WITHOUT_TOKENS = ("gemma3_text", "olmo2")  # transformers has no class for their tokens
_ENCODERS = ("bert", "big_bird", "longformer", "roberta")
_ENDS: dict[Task, str] = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}


def task(config: Mapping[str, Any]) -> Task | None:
    """The task of a config's class, if that has a head for it."""
    written_by, first = architecture(config), _CLASSES.get(str(config.get("model_type")))
    return next((task for task, end in _ENDS.items() if first and written_by == first + end), None)


def names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a config by number, LABEL_0 and so on without names.

    Raises CheckpointError for invalid ones.
    """
    listed = config.get("id2label")
    if listed is None:
        return tuple(f"LABEL_{number}" for number in range(config.get("num_labels") or 2))
    try:
        named = {int(number): str(name) for number, name in listed.items()}
        return tuple(named[number] for number in range(len(named)))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"id2label of config.json is {listed!r}, not names by number from 0") from None


def label_spec(config: Config) -> LabelSpec | None:
    """The head of a config's class; None for a class without one."""
    kind, family = task(config), config["model_type"]
    if kind is None:
        return None
    count = len(names(config))
    if kind == "token":
        return LabelSpec(count=count, reads="each")
    match family:
        case "bert":
            return LabelSpec(count=count, reads="pooled")
        case "roberta" | "longformer":
            return LabelSpec(count=count, reads="first", dense="tanh")
        case "big_bird":
            return LabelSpec(count=count, reads="first", dense=activation(config.get("hidden_act", "gelu_new")))
    return LabelSpec(count=count, reads="last", bias=False, padding=config.get("pad_token_id"))


def with_head(config: Config, made: ModelSpec) -> ModelSpec:
    """The spec with the classifying head of the config's class in the place of others."""
    labels = label_spec(config)
    match made:
        case DecoderSpec() if labels is not None:
            return replace(made, head=None, labels=labels)
        case EncoderSpec() if labels is not None:
            return replace(made, head=None, labels=labels, pooler=made.pooler or labels.reads == "pooled")
    return made


def with_names(config: Config, keymap: KeyMap, layout: str) -> KeyMap:
    """The tensor names with those of the classifying head of the config's class."""
    kind, family = task(config), config["model_type"]
    if kind is None:
        return keymap
    if family not in _ENCODERS:
        name = "classifier" if (family, kind) == ("gpt2", "token") else "score"
        rules = (Rule(f"{name}.*", "labels.proj.*"),)
    elif family == "bert" or kind == "token":
        rules = (Rule("classifier.*", "labels.proj.*"),)
    else:
        rules = (Rule("classifier.dense.*", "labels.dense.*"), Rule("classifier.out_proj.*", "labels.proj.*"))
    # Checkpoints of a base alone may leave its first word out; beside a head it is there.
    saved_as = ("", "") if layout == "hf" else keymap.saved_as
    return replace(keymap, rules=(*rules, *keymap.rules), saved_as=saved_as)


def check_support(config: Mapping[str, Any], kind: Task) -> None:
    """Raise UsageError for a family without such a head."""
    known = [name for name in _CLASSES if kind == "sequence" or name not in _WITHOUT_TOKENS]
    if (family := config.get("model_type")) not in known:
        what = "texts" if kind == "sequence" else "words"
        raise UsageError(
            f"macllm has no head that classifies {what} for this model",
            cause=f"its model_type is {family!r}",
            remedy=f"a model of type {', '.join(known)}",
        )


def classifying(config: Mapping[str, Any], kind: Task, labels: Sequence[str]) -> dict[str, Any]:
    """The config of the family's class for a task with these labels. Raises UsageError for one without."""
    check_support(config, kind)
    changed = {name: value for name, value in config.items() if name != "num_labels"}
    changed["architectures"] = [_CLASSES[config["model_type"]] + _ENDS[kind]]
    changed["id2label"] = {str(number): name for number, name in enumerate(labels)}
    changed["label2id"] = {name: number for number, name in enumerate(labels)}
    if kind == "sequence" and len(labels) > 1:
        changed["problem_type"] = "single_label_classification"
    else:
        changed.pop("problem_type", None)
    return changed


def put_labels(
    model: DecoderLM | EncoderLM, kind: Task, labels: Sequence[str], *, padding: int | None = None, seed: int = 0
) -> None:
    """Put a new head for these labels on a model, in place, with its config.

    `padding` is the padding token of a config that names none. Raises UsageError for a family without such a head.
    """
    config = classifying(model.info.config, kind, labels)
    if config.get("pad_token_id") is None and padding is not None:
        config["pad_token_id"] = padding
    spec = label_spec(Config(config))
    if spec is None:  # checked above
        raise AssertionError(config["architectures"])
    put_label_head(model, spec, std=config.get("initializer_range") or 0.02, seed=seed)
    model.info = replace(model.info, config=MappingProxyType(config))
