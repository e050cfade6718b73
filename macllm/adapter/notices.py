"""Log messages about an adapter that is attached: what may be right, and may be a mistake."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.nn as nn

from macllm import hub
from macllm.errors import MacllmError
from macllm.nn import lora
from macllm.weights.fingerprint import fingerprint

from . import parameters
from .names import Change, Names

log = logging.getLogger(__name__)

BASE = "base_fingerprint"
"""Field of adapter_config.json: the fingerprint of the checkpoint that the adapter was trained on."""
_UNSET: tuple[Any, ...] = (None, False, "", [], {})


def tell_of_another_base(folder: Path, config: Mapping[str, Any], base: Path) -> None:
    """Log that the weights in `base` are not those that the adapter was trained on.

    mlx-lm and PEFT record the name of a model alone: it is compared if that model is on this machine.
    """
    recorded = config.get(BASE)
    try:
        wanted = recorded if isinstance(recorded, str) else _fingerprint_of(config.get("model"), base)
        if wanted is None or fingerprint(base) == wanted:
            return
    except (OSError, ValueError, MacllmError):  # as of mlx-lm's own classes, which read other layouts
        return
    log.warning(
        "%s: the weights in %s are not those that the adapter was trained on; right only for the same model in other "
        "bits",
        folder,
        base,
    )


def _fingerprint_of(name: object, base: Path) -> str | None:
    """The fingerprint of the named model; None for the model in `base`, and for none."""
    if not isinstance(name, str) or not name:
        return None
    folder = hub.resolve(name, offline=True)
    return None if folder.resolve() == base.resolve() else fingerprint(folder)


def tell_of_another_tokenizer(folder: Path, base: Path) -> None:
    """Log that the tokenizer beside an adapter of PEFT has another chat template or more tokens."""
    theirs = _templates(folder)
    remedy = "to use it, put the adapter's tokenizer files into a copy of the model"
    if theirs and theirs != _templates(base):
        log.warning(
            "%s: the adapter was trained with another chat template than the model in %s has; %s", folder, base, remedy
        )
    added, known = _tokens(folder)[0], _tokens(base)
    if added and known[1] and (more := sorted(added - known[0] - known[1])):
        log.warning(
            "%s: the adapter was trained with tokens that the tokenizer in %s does not have: %s; %s",
            folder,
            base,
            ", ".join(more[:8]),
            remedy,
        )


def _templates(folder: Path) -> dict[str, str]:
    """The chat templates in a folder by name; empty without any."""
    from macllm.text.json_data import read_json
    from macllm.text.template import ChatTemplate

    try:
        found = ChatTemplate.from_folder(folder, read_json(folder / "tokenizer_config.json"), {})
    except (OSError, ValueError, MacllmError):
        return {}
    return {} if found is None else {name: text.strip() for name, text in found.sources.items()}


def _tokens(folder: Path) -> tuple[set[str], set[str]]:
    """The added tokens in tokenizer.json, and those of its vocabulary; empty without the file."""
    from macllm.text.json_data import is_list, is_object, list_in, object_in, read_json

    try:
        content = read_json(folder / "tokenizer.json")
    except (OSError, ValueError, MacllmError):
        content = {}
    added = {str(token.get("content")) for token in list_in(content.get("added_tokens")) if is_object(token)}
    vocabulary = object_in(content.get("model")).get("vocab")
    if is_list(vocabulary):  # of pairs of a token and its score
        return added, {str(pair[0]) for pair in vocabulary if is_list(pair) and pair}
    return added, set(object_in(vocabulary))


def tell_of_layers_left_out(
    folder: Path, model: nn.Module, config: Mapping[str, Any], changes: Mapping[str, Change], names: Names
) -> None:
    """Log that an adapter of PEFT has no weights for layers that its target_modules name."""
    if config.get("layers_to_transform") is not None:
        return
    changed = {part for name in changes for part in names.ours(name)}
    absent = sorted({name for ours, name in _targets(model, config, names) if ours not in changed})
    if absent:
        log.warning(
            "%s: the adapter has no weights for %d layers that its config names, such as %s; they stay as in the base",
            folder,
            len(absent),
            absent[0],
        )


def _targets(model: nn.Module, config: Mapping[str, Any], names: Names) -> Iterator[tuple[str, str]]:
    """The linear layers and embeddings that the config names, by our names and those of transformers."""
    targets, spared = config.get("target_modules"), (config.get("exclude_modules"), config.get("modules_to_save"))
    for path, module in model.named_modules():
        ours = path.removesuffix(".linear")  # of an adapter that is attached
        for name in names.theirs(ours) if isinstance(module, lora.Adaptable) else ():
            is_module = not parameters.is_parameter(name)
            if is_module and _is_named(name, targets) and not any(_is_named(name, each) for each in spared):
                yield ours, name


def _is_named(module: str, patterns: object) -> bool:
    """True for a module that PEFT's patterns name: ends of names, or a regular expression of names."""
    if isinstance(patterns, str):
        try:
            return re.fullmatch(patterns, module) is not None
        except re.error:
            return False
    ends = cast("list[object]", patterns) if isinstance(patterns, list) else []
    return any(isinstance(end, str) and f".{module}".endswith(f".{end}") for end in ends)


def tell_of_unknown_fields(folder: Path, config: Mapping[str, Any], known: frozenset[str]) -> None:
    """Log fields of a config that say something and that macllm does not know, as of a newer PEFT."""
    unknown = [name for name, value in config.items() if name not in known and value not in _UNSET]
    if unknown:
        log.warning("%s: fields of the adapter's config that macllm does not know: %s", folder, ", ".join(unknown))
