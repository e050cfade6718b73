"""Translation of updates between our modules and those of a checkpoint's layout.

Where one tensor of the checkpoint holds several linear layers of ours (fused queries, keys and values), their factors
become one pair of higher rank: the As side by side, the Bs block-diagonal. Layers that share one A, as those that were
read from such a pair, keep it. DoRA's magnitudes of the rows are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from macllm import families
from macllm.errors import CheckpointError, UsageError
from macllm.families.config import Config
from macllm.nn import lora
from macllm.nn.info import ModelInfo
from macllm.nn.lora import Update, Whole
from macllm.nn.models import DecoderLM, EncoderDecoderLM, EncoderLM
from macllm.nn.quantize import QUANTIZED
from macllm.weights import keymap
from macllm.weights.keymap import Drop, Kept, KeyMap, Rule, Split, StackExperts, find, our_modules, their_modules

from . import parameters

Change = Update | Whole
HEAD = "lm_head"
"""The head of transformers' models."""
EMBEDDING = "embed_tokens"
"""The token embedding of most of them: PEFT ties no other to the head unless the head is named too."""
_ROUNDING = 2.0**-8  # of bfloat16, relative to the largest number


@dataclass(frozen=True)
class Names:
    """Translation between our module names and those of mlx-lm or transformers.

    Both give lists: one module of theirs may be several of ours. Of transformers' modules some are parameters, named as
    such. `keymaps` are in order of precedence; none: the names of mlx-lm's own class.
    """

    theirs: Callable[[str], list[str]]
    ours: Callable[[str], list[str]]
    keymaps: tuple[KeyMap, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, layout: families.Layout = "mlx") -> Names:
        """The names of a model's family."""
        config = cast(ModelInfo, model.info).config
        if not families.is_known(dict(config)):  # mlx-lm's own class, one level down
            return cls(*parameters.of_class(config, as_parameters=layout == "modules"))
        # an adapter of older modules has the names of the checkpoint
        layouts: tuple[families.Layout, ...] = (layout, "hf") if layout == "modules" else (layout,)
        rules = tuple(families.keys(Config(config, ()), one) for one in layouts)
        if layout == "modules" and not _has_head(model):
            rules = (_without_prefix(rules[0]), *rules[1:])
        return cls(
            lambda ours: [
                _address(*found) for found in their_modules(ours, rules[0]) if isinstance(found[1], Rule | Split)
            ],
            lambda theirs: next(filter(None, (our_modules(theirs, one) for one in rules)), []),
            rules,
        )

    def is_transposed(self, theirs: str) -> bool:
        """True for a matrix that is stored (in, out)."""
        for rules in self.keymaps:
            if found := find(f"{theirs}.weight", rules) or find(theirs, rules):
                return isinstance(found[0], Rule | Split) and found[0].transpose
        return False

    def partners(self, ours: str) -> list[str]:
        """Our modules in the module of theirs that has `ours`."""
        found: list[str] = []
        for theirs in self.theirs(ours):
            owner, _, own = theirs.rpartition(".")
            stacks = parameters.STACKS if parameters.is_stack(theirs) else (own,)
            found += [part for name in stacks for part in self.ours(f"{owner}.{name}")]
        return found

    def expert(self, theirs: str) -> tuple[StackExperts, int] | None:
        """The rule and the number of a module that is one expert of a stack of ours."""
        for rules in self.keymaps:
            found = find(f"{theirs}.weight", rules)
            if found is not None and isinstance(found[0], StackExperts):
                return found[0], int(found[1]["e"])
        return None


def _has_head(model: nn.Module) -> bool:
    """True for a model with a head, for tokens or for labels."""
    return not isinstance(model, DecoderLM | EncoderLM) or bool(model.spec.head or model.spec.labels)


def _without_prefix(rules: KeyMap) -> KeyMap:
    """The names of a model without a head, whose modules lack the first word."""
    prefix = next((read_as for theirs, read_as in rules.aliases if read_as and not theirs), "")
    return replace(rules, saved_as=(prefix, ""))


def _address(name: str, rule: Kept) -> str:
    """The name of their module, or of a parameter, whose rule has no wildcard at its end."""
    return f"{name}.weight" if rule.theirs.endswith(".weight") else name


def to_theirs(model: nn.Module, changes: Mapping[str, Change], names: Names) -> dict[str, Change]:
    """Changes by name of the layout. Raises CheckpointError for a module without one."""
    updates, whole = divided(changes)
    joined: dict[str, Update] = {}
    for ours in updates:
        found = names.theirs(ours)
        if not found:
            raise CheckpointError(f"{ours} has no name in the checkpoint's layout, so an adapter cannot store it")
        for name in found:
            if name not in joined:
                parts = names.ours(name)
                update = _join([updates.get(part) for part in parts], [layer(model, part) for part in parts])
                turned = parameters.is_parameter(name) and names.is_transposed(name)
                joined[name] = parameters.turned(update) if turned else update
    return joined | _whole_to_theirs(whole, names)


def divided(changes: Mapping[str, Change]) -> tuple[dict[str, Update], dict[str, Whole]]:
    """Low-rank updates and modules that are stored whole, by name."""
    whole = {name: change for name, change in changes.items() if isinstance(change, Whole)}
    return {name: change for name, change in changes.items() if isinstance(change, Update)}, whole


def _whole_to_theirs(whole: Mapping[str, Whole], names: Names) -> dict[str, Whole]:
    tensors = {f"{name}.{leaf}": array for name, each in whole.items() for leaf, array in each.tensors.items()}
    if not names.keymaps:
        return _grouped({names.theirs(name)[0]: array for name, array in tensors.items()})
    for name in whole:
        partners = names.partners(name)
        if absent := [partner for partner in partners if partner not in whole]:
            raise CheckpointError(
                f"the format cannot store {name} whole without {', '.join(absent)}",
                cause="they are one module of transformers",
                remedy="keep the adapter in mlx-lm's format, or train all of them whole",
            )
    return _grouped(keymap.to_theirs(tensors, names.keymaps[0]))


def _whole_to_ours(whole: Mapping[str, Whole], names: Names) -> dict[str, Whole]:
    tensors = {f"{name}.{leaf}": array for name, each in whole.items() for leaf, array in each.tensors.items()}
    if not names.keymaps:
        return {names.ours(name)[0]: each for name, each in whole.items()}
    ours: dict[str, mx.array] = {}
    for name in tensors:
        if not any(_holds(rules, name) for rules in names.keymaps):
            raise CheckpointError(f"the adapter stores {name.rpartition('.')[0]}, which this model does not have")
    for rules in names.keymaps:
        known = {name: tensors.pop(name) for name in list(tensors) if _holds(rules, name)}
        ours |= keymap.to_ours(known, rules)
    return _grouped(ours)


def _holds(rules: KeyMap, tensor: str) -> bool:
    found = find(tensor, rules)
    return found is not None and not isinstance(found[0], Drop)


def _grouped(tensors: Mapping[str, mx.array]) -> dict[str, Whole]:
    """Tensors by the module that they are of."""
    found: dict[str, Whole] = {}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition(".")
        found.setdefault(module, Whole({})).tensors[leaf] = array
    return found


def _join(parts: list[Update | None], layers: list[nn.Module]) -> Update:
    """One update of fused linear layers; zeros for a layer without one."""
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    present = [p for p in parts if p is not None]
    scale = next((p.scale for p in present if p.scale), 0.0)
    of_experts = present[0].a.ndim == 3  # B is (E, F, r), else (r, F)
    shared = len(present) == len(parts) and all(mx.array_equal(p.a, present[0].a) for p in present)
    lora_a = present[0].a if shared else mx.concatenate([p.a for p in present], axis=1)
    rows, before = [], 0
    for part, linear in zip(parts, layers, strict=True):
        width = part.a.shape[1] if part is not None else 0
        around = (0, 0) if shared else (before, lora_a.shape[1] - before - width)
        if part is not None:
            block = part.scaled_b(scale)
        else:
            outputs = lora.sizes(linear)[1]
            block = mx.zeros((lora_a.shape[0], outputs, 0) if of_experts else (0, outputs))
        rows.append(mx.pad(block, [(0, 0), (0, 0), around] if of_experts else [around, (0, 0)]))
        before += width
    return Update(lora_a, mx.concatenate(rows, axis=1), scale, _magnitudes(parts, layers))


def _magnitudes(parts: list[Update | None], layers: list[nn.Module]) -> mx.array | None:
    """Magnitudes of fused linear layers: those of a layer without an update are the norms of its rows."""
    if all(part is None or part.magnitude is None for part in parts):
        return None
    return mx.concatenate(
        [
            part.magnitude if part is not None and part.magnitude is not None
            else lora.row_norms(lora.unpacked_weight(linear))
            for part, linear in zip(parts, layers, strict=True)
        ]
    )  # fmt: skip


def to_ours(model: nn.Module, theirs: Mapping[str, Change], names: Names) -> dict[str, Change]:
    """Changes by our names.

    Raises CheckpointError for a module that the model does not have, or another shape.
    """
    modules = dict(model.named_modules())
    updates, whole = divided(theirs)
    for name in updates if names.keymaps else theirs:
        parts = names.ours(name)
        if not parts or not modules.keys() >= set(parts):
            raise CheckpointError(f"the adapter changes {name}, which this model does not have")
    single = {name: found for name in updates if (found := names.expert(name)) is not None}
    stacks = parameters.stacked(
        {(names.ours(name)[0], rule.count, e): updates[name] for name, (rule, e) in single.items()}
    )
    split = {
        ours: part
        for name, update in updates.items()
        if name not in single
        for ours, part in _split(model, name, update, names)
    }
    return stacks | split | _whole_to_ours(whole, names)


def _split(model: nn.Module, theirs: str, update: Update, names: Names) -> list[tuple[str, Update]]:
    parts = names.ours(theirs)
    if parameters.is_parameter(theirs):
        inputs, outputs = lora.sizes(layer(model, parts[0]))[0], sum(lora.sizes(layer(model, p))[1] for p in parts)
        update = parameters.oriented(update, (inputs, outputs), transposed=names.is_transposed(theirs))
    if len(parts) == 1:
        return [(parts[0], update)]
    outputs = [lora.sizes(layer(model, part))[1] for part in parts]
    stored = [update.b.shape[1], *([] if update.magnitude is None else update.magnitude.shape)]
    if wrong := [number for number in stored if number != sum(outputs)]:
        raise CheckpointError(f"the adapter's {theirs} has {wrong[0]} outputs, the model's {sum(outputs)}")
    ends = [sum(outputs[: n + 1]) for n in range(len(outputs) - 1)]
    pieces = mx.split(update.b, ends, axis=1)
    rows = [None] * len(parts) if update.magnitude is None else mx.split(update.magnitude, ends)
    return [(p, update._replace(b=b, magnitude=m)) for p, b, m in zip(parts, pieces, rows, strict=True)]


def layer(model: nn.Module, name: str) -> nn.Module:
    """The named linear layer, without its adapter. Raises CheckpointError if there is none."""
    module = dict(model.named_modules()).get(name)
    if isinstance(module, lora.LoRALinear):
        module = module.linear
    if not isinstance(module, lora.Adaptable):
        raise CheckpointError(f"the adapter changes {name}, which is not a linear layer of this model")
    return module


def is_tied(model: nn.Module, name: str) -> bool:
    """True for a token embedding whose matrix is the head's too."""
    module = dict(model.named_modules()).get(name)
    base = module.linear if isinstance(module, lora.LoRALinear) else module
    if not isinstance(base, lora.EMBEDDINGS):
        return False
    if isinstance(model, DecoderLM | EncoderLM | EncoderDecoderLM):
        return any(part is module for part in model.head_modules())
    return bool(cast(ModelInfo, model.info).config.get("tie_word_embeddings"))


def refuse_shared_table(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Raise CheckpointError for a change of the token embedding that encoder and decoder share.

    Transformers has three modules with its matrix, and a change of the one that is stored has no effect in PEFT.
    """
    if isinstance(model, EncoderDecoderLM) and model.spec.shared and "embedding.tokens" in changes:
        raise CheckpointError(
            "PEFT cannot adapt the token embedding that encoder and decoder share",
            cause="transformers has three modules with its matrix, and PEFT changes single modules",
            remedy="keep the adapter in mlx-lm's format, or merge it",
        )


def refuse_unknown_ties(names: Names, tied: Sequence[str]) -> None:
    """Raise CheckpointError if PEFT does not know the head that is tied to changed embeddings of theirs."""
    heads = names.theirs("head.proj") if names.keymaps else [HEAD]
    if heads != [HEAD] and (other := [name for name in tied if not name.endswith(EMBEDDING)]):
        raise CheckpointError(
            f"PEFT cannot tie {other[0]} to its head",
            cause=f"it ties modules named {EMBEDDING} and {HEAD} alone",
            remedy="keep the adapter in mlx-lm's format, or merge it",
        )


def without_tied_heads(model: nn.Module, theirs: Mapping[str, Change], names: Names) -> dict[str, Change]:
    """The changes without those of a tied head, which PEFT stores beside its embedding's.

    Raises CheckpointError for a head and an embedding that are not tied any more.
    """
    modules = dict(model.named_modules())
    absent = {name for name in (HEAD,) if not any(ours in modules for ours in names.ours(name))}
    updates, whole = divided(theirs)
    untied = [name for name in whole if name in absent or any(is_tied(model, ours) for ours in names.ours(name))]
    if len(untied) == 2 and _are_equal(*(whole[name] for name in untied)):
        untied = []
    if any(is_tied(model, ours) for ours in modules):
        untied += [name for name in absent & updates.keys() if not updates[name].head]
    if untied:
        raise CheckpointError(
            f"the adapter unties {untied[0]} from {'its head' if untied[0] not in absent else 'the token embedding'}",
            cause="PEFT trained it without ensure_weight_tying, and the model has one matrix for both",
            remedy="train with ensure_weight_tying=True, or merge it with peft and save the model untied",
        )
    return {n: each for n, each in theirs.items() if n not in absent or (isinstance(each, Update) and not each.head)}


def _are_equal(one: Whole, other: Whole) -> bool:
    return bool(mx.array_equal(one.tensors["weight"], other.tensors["weight"]))


def check_tables(model: nn.Module, tables: Mapping[str, mx.array], names: Names) -> None:
    """Raise CheckpointError for an embedding or head other than that of the model, such as a resized one."""
    modules = dict(model.named_modules())
    tied = [n for n, m in modules.items() if isinstance(m, lora.EMBEDDINGS | lora.LoRAEmbedding) and is_tied(model, n)]
    for theirs, table in tables.items():
        own = [ours for ours in names.ours(theirs) if ours in modules] or (tied if theirs == HEAD else [])
        if not own:
            raise CheckpointError(f"the adapter stores {theirs}, which this model does not have")
        for ours in own:
            if not isinstance(base := layer(model, ours), QUANTIZED) and not _is_same(base["weight"], table):
                raise CheckpointError(
                    f"the adapter was trained on another {theirs} than the model has",
                    cause=f"its shape is {table.shape}, the model's {base['weight'].shape}",
                    remedy="save the base with its own embedding, and load that",
                )


def _is_same(weight: mx.array, table: mx.array) -> bool:
    """True for equal matrices, but for rounding to 16 bits."""
    if weight.shape != table.shape:
        return False
    weight, table = weight.astype(mx.float32), table.astype(mx.float32)
    return float(mx.abs(weight - table).max()) <= _ROUNDING * float(mx.abs(table).max())


def our_keys(model: nn.Module, keys: Sequence[str]) -> tuple[str, ...]:
    """Patterns of layers to adapt, under our names.

    A pattern that fits none of them may have the names of mlx-lm or transformers, such as self_attn.q_proj; a module of
    theirs stands for all layers in it. One that fits nothing stays as it is, for `lora.apply` to refuse.
    """
    return _ours(model, [name for name, module in model.named_modules() if isinstance(module, lora.Adaptable)], keys)


def our_modules_to_save(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The modules to train whole that patterns name, as in `our_keys`, by our names.

    Raises UsageError for a pattern that matches nothing, for a head that is tied to the token embedding, and for a part
    of a matrix that the checkpoint holds as one.
    """
    every = [*lora.save_targets(model, ("*",))]
    tables = [name for name in every if is_tied(model, name)]
    if tables and HEAD in patterns:
        raise UsageError(
            f"{HEAD} is tied to the token embedding, which has its weights",
            remedy="modules_to_save = embed_tokens, which trains both and keeps them tied",
        )
    chosen = tuple(lora.save_targets(model, _ours(model, every, patterns)))
    names = Names.of(model)
    for name in chosen:
        found = names.theirs(name)
        if parts := [part for theirs in found for part in names.ours(theirs) if part not in chosen]:
            raise UsageError(
                f"{name} cannot be saved without {', '.join(parts)}",
                cause=f"they are one matrix of the checkpoint, {found[0]}",
                remedy=f"modules_to_save = {found[0].rsplit('.', 1)[-1]}",
            )
        if not found:
            raise UsageError(f"{name} has no name in the checkpoint's layout, so an adapter cannot store it")
    return chosen


def _ours(model: nn.Module, layers: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Patterns under our names; one that fits no layer may have those of mlx-lm or transformers."""
    found: list[str] = []
    for key in keys:
        theirs = () if any(lora.matches(name, key) for name in layers) else _named(model, layers, key)
        found += theirs or (key,)
    return tuple(dict.fromkeys(found))


def _named(model: nn.Module, layers: Sequence[str], key: str) -> tuple[str, ...]:
    """Our layers whose module of mlx-lm or transformers the pattern names."""
    every = [Names.of(model, layout) for layout in ("mlx", "hf", "modules")]
    return tuple(
        name for name in layers if any(lora.matches(one, key) for names in every for one in names.theirs(name))
    )
