"""Translation between a checkpoint's tensor names ("theirs") and macllm's ("ours").

A family lists its rules once; `to_ours` applies them forwards and `to_theirs` backwards, so that saving always
inverts loading. In a name `{i}` matches a layer number, `{e}` an expert number, a trailing `*` the last part (weight,
bias, scales, biases), and a trailing `**` anything.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx

from macllm.errors import CheckpointError

Weights = dict[str, mx.array]


@dataclass(frozen=True)
class Rule:
    """One tensor, renamed; `transpose` for checkpoints that store (in, out)."""

    theirs: str
    ours: str
    transpose: bool = False


@dataclass(frozen=True)
class Split:
    """A fused tensor of theirs, several of ours concatenated along the output axis."""

    theirs: str
    ours: tuple[str, ...]
    sizes: tuple[int, ...]
    transpose: bool = False


@dataclass(frozen=True)
class StackExperts:
    """One tensor per expert (`{e}`) of theirs as one stacked tensor of ours."""

    theirs: str
    ours: str
    count: int


@dataclass(frozen=True)
class Squeeze:
    """A (1, n) tensor of theirs as an (n,) tensor of ours."""

    theirs: str
    ours: str


@dataclass(frozen=True)
class Drop:
    """A tensor that is ignored: computed, a duplicate, or of another modality."""

    theirs: str


Kept = Rule | Split | StackExperts | Squeeze
AnyRule = Kept | Drop


@dataclass(frozen=True, kw_only=True)
class Tie:
    """Modules of theirs (tensors, if `leaves` is ("",)) that share one matrix unless their tensors differ.

    `tables` are token embeddings; without any, `source` is the embedding, and with some, it is only the name of the
    shared matrix, as `model.shared` of BART. `heads` are output heads. A module that is not stored equals the source.
    """

    source: str
    tables: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ("weight", "scales", "biases")


@dataclass(frozen=True)
class Computed:
    """A tensor of theirs that `make` computes; a stored one with other values is loaded."""

    theirs: str
    make: Callable[[], Any]


# TensorFlow's names in the first BERT checkpoints.
_OLD_ENDINGS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


@dataclass(frozen=True)
class KeyMap:
    """Rules in order of precedence.

    An alias is a pair of prefixes: a name that begins with the first is read as if it began with the second, and the
    first alias that leads to a rule counts. `saved_as` is such a pair for writing. `ties` are normalized and `computed`
    tensors removed before the rules apply (`weights.ties`).
    """

    rules: tuple[AnyRule, ...]
    aliases: tuple[tuple[str, str], ...] = (("", ""),)
    saved_as: tuple[str, str] = ("", "")
    ties: tuple[Tie, ...] = ()
    computed: tuple[Computed, ...] = ()

    def spellings(self, name: str) -> Iterator[str]:
        """Every spelling that the aliases read as `name`."""
        for theirs, read_as in self.aliases:
            if name.startswith(read_as):
                yield theirs + name[len(read_as) :]

    def written(self, name: str) -> str:
        """A name of the rules as it is written to a checkpoint."""
        mine, theirs = self.saved_as
        return theirs + name.removeprefix(mine) if name.startswith(mine) else name


def to_ours(theirs: Mapping[str, mx.array], keymap: KeyMap, written_by: str = "") -> Weights:
    """The tensors under our names.

    Raises CheckpointError, naming them, for tensors that no rule matches, missing experts, and different tensors for
    the same name of ours.
    """
    ours: Weights = {}
    source: dict[str, str] = {}
    stacks: dict[tuple[str, int], dict[int, mx.array]] = defaultdict(dict)
    unknown: list[str] = []
    for name, array in theirs.items():
        found = find(name, keymap)
        if found is None:
            unknown.append(name)
            continue
        rule, parts = found
        if isinstance(rule, StackExperts):
            stacks[_fill(rule.ours, parts), rule.count][int(parts["e"])] = array
            continue
        for to, piece in _read(rule, parts, name, array):
            if to in ours and not mx.array_equal(ours[to], piece):
                raise CheckpointError(
                    f"the tensors {source[to]} and {name} of this checkpoint differ but are the same weight",
                    cause="weights of two checkpoints are in one file or folder",
                    remedy="download the checkpoint again",
                )
            ours[to], source[to] = piece, name
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of this checkpoint are unknown: {_listed(unknown)}",
            cause="its config.json describes a model without them" + (f"; {written_by} wrote it" if written_by else ""),
            remedy="check that weights and config.json belong together",
        )
    for (name, count), experts in stacks.items():
        absent = sorted(set(range(count)) - set(experts))
        if absent or len(experts) != count:
            raise CheckpointError(f"{name} has {len(experts)} experts, not {count}", cause=f"missing: {absent[:8]}")
        ours[name] = mx.stack([experts[e] for e in range(count)])
    return ours


def _read(
    rule: Rule | Split | Squeeze | Drop, parts: dict[str, str], name: str, array: mx.array
) -> list[tuple[str, mx.array]]:
    """Our tensors for their tensor `name`."""
    match rule:
        case Rule(_, to, transpose):
            return [(_fill(to, parts), _transposed(array, transpose))]
        case Split(_, to, sizes, transpose):
            pieces = _pieces(name, _transposed(array, transpose), sizes)
            return [(_fill(part, parts), piece) for part, piece in zip(to, pieces, strict=True)]
        case Squeeze(_, to):
            return [(_fill(to, parts), array.flatten())]
        case Drop():
            return []


def to_theirs(ours: Mapping[str, mx.array], keymap: KeyMap) -> Weights:
    """The inverse of `to_ours`, without dropped tensors. Raises CheckpointError naming uncovered tensors."""
    theirs: Weights = {}
    left = dict(ours)

    def put(name: str, array: mx.array) -> None:
        theirs[keymap.written(name)] = array

    for rule in keymap.rules:
        if isinstance(rule, Drop):
            continue
        first = rule.ours[0] if isinstance(rule, Split) else rule.ours
        for name in [n for n in left if _pattern(first).fullmatch(n)]:
            match = _pattern(first).fullmatch(name)
            assert match is not None
            _write_back(rule, match.groupdict(), left, put)
    if left:
        raise CheckpointError(f"{len(left)} tensors of this model have no checkpoint names: {_listed(list(left))}")
    return theirs


def _write_back(rule: Kept, parts: dict[str, str], left: Weights, put: Callable[[str, mx.array], None]) -> None:
    """Undo `rule`: move its tensors from `left` to their checkpoint name."""
    match rule:
        case Rule(to, mine, transpose):
            put(_fill(to, parts), _transposed(left.pop(_fill(mine, parts)), transpose))
        case Split(to, mine, _, transpose):
            pieces = [left.pop(_fill(part, parts)) for part in mine]
            joined = mx.concatenate(pieces, axis=_output_axis(pieces[0]))
            put(_fill(to, parts), _transposed(joined, transpose))
        case StackExperts(to, mine, count):
            stacked = left.pop(_fill(mine, parts))
            for e in range(count):
                put(_fill(to, parts | {"e": str(e)}), stacked[e])
        case Squeeze(to, mine):
            put(_fill(to, parts), left.pop(_fill(mine, parts))[None])


def their_modules(ours: str, keymap: KeyMap) -> list[tuple[str, Kept]]:
    """The modules of theirs that contain our module `ours`, with their rules."""
    found: list[tuple[str, Kept]] = []
    for rule in keymap.rules:
        if isinstance(rule, Drop):
            continue
        for mine in rule.ours if isinstance(rule, Split) else (rule.ours,):
            if match := _pattern(mine).fullmatch(ours + ".weight"):
                theirs = _fill(rule.theirs, match.groupdict()).removesuffix(".weight")
                found.append((keymap.written(theirs), rule))
    return found


def our_modules(theirs: str, keymap: KeyMap) -> list[str]:
    """Our modules in their module or parameter `theirs`; [] for an unknown one."""
    found = find(theirs + ".weight", keymap) or find(theirs, keymap)
    if found is None:
        return []
    rule, parts = found
    if isinstance(rule, Drop):
        return []
    names = rule.ours if isinstance(rule, Split) else (rule.ours,)
    return [_fill(name, parts).removesuffix(".weight") for name in names]


def find(name: str, keymap: KeyMap) -> tuple[AnyRule, dict[str, str]] | None:
    """The rule for a tensor of theirs, and what its wildcards stand for; None for an unknown name."""
    for old, new in _OLD_ENDINGS:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    for theirs, read_as in keymap.aliases:
        if not name.startswith(theirs):
            continue
        bare = read_as + name[len(theirs) :]
        for rule in keymap.rules:
            if match := _pattern(rule.theirs).fullmatch(bare):
                return rule, match.groupdict()
    return None


@cache
def _pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)")
    escaped = escaped.replace(r"\*\*", r".+").replace(r"\*", r"(?P<leaf>[^.]+)")
    return re.compile(escaped)


def _fill(name: str, parts: Mapping[str, str]) -> str:
    return (
        name.replace("{i}", parts.get("i", "")).replace("{e}", parts.get("e", "")).replace("*", parts.get("leaf", ""))
    )


def _transposed(array: mx.array, transpose: bool) -> mx.array:
    return array.swapaxes(-1, -2) if transpose and array.ndim > 1 else array


def _output_axis(array: mx.array) -> int:
    return max(array.ndim - 2, 0)


def _pieces(name: str, array: mx.array, sizes: tuple[int, ...]) -> list[mx.array]:
    axis = _output_axis(array)
    if array.shape[axis] != sum(sizes):
        raise CheckpointError(
            f"{name} has {array.shape[axis]} outputs, not {' + '.join(map(str, sizes))}",
            cause="its config.json implies another size",
        )
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
    return cast("list[mx.array]", mx.split(array, ends, axis=axis))


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8])
    return shown if len(names) <= 8 else f"{shown}, and {len(names) - 8} more"
