"""Fused decode step (CPU): runs consecutive residual branches of one new token as one native op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product, repeat
from operator import getitem, is_
from typing import Any, NamedTuple, Protocol, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.ops import decode_step
from macllm.ops.decode_step import AttentionParams, Branches, MLPParams, Slots
from macllm.ops.kv import KV

from .attention import SelfAttention
from .mask import Masks
from .mlp import MLP
from .norm import ResidualNorm
from .state.key_values import KeyValues
from .state.layer import LayerState

_NORMS = ("pre", "branch", "sum")
_HEAD_NORMS = ("q_norm", "k_norm", "q_head_norm", "k_head_norm")
_NORM_ARRAYS, _LINEAR_ARRAYS = ("weight", "bias"), ("weight", "scales", "biases", "bias")


class Layer(Protocol):
    """A transformer block: its modules, and its residual branches composed of ops."""

    @property
    def mixer(self) -> nn.Module:
        """The mixer."""
        ...

    @property
    def mixer_norm(self) -> ResidualNorm:
        """The residual connection around it."""
        ...

    @property
    def feed_forward(self) -> nn.Module:
        """The feed-forward layer."""
        ...

    @property
    def feed_forward_norm(self) -> ResidualNorm:
        """The residual connection around it."""
        ...

    def attend(self, x: mx.array, masks: Masks, state: LayerState | None) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        ...

    def cross_attend(self, x: mx.array, masks: Masks, memory: KV) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        ...

    def feed(self, x: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        ...


class _Token(NamedTuple):
    """The inputs of a branch other than its hidden states."""

    masks: Masks
    state: LayerState
    memory: KV | None


class _Branch(NamedTuple):
    """A residual branch of layer `layer`: composed of ops, and the native op's plan and arrays, if any."""

    layer: int
    composed: Callable[[mx.array, _Token], mx.array]
    attention: SelfAttention | None = None
    plan: Any = None
    arrays: Sequence[tuple[nn.Module, str]] = ()


class _BranchGroup(NamedTuple):
    """Consecutive branches with plans, run as one op, or one branch without a plan."""

    branches: list[_Branch]
    plans: list[Any]
    owners: list[nn.Module]
    names: list[str]


class DecodeStep:
    """The cached decode plan of a stack; rebuilt when a linear layer or a norm is replaced."""

    def __init__(self) -> None:
        self._layers: Sequence[Layer] = []
        self._owners: list[nn.Module] = []
        self._names: list[str] = []
        self._modules: list[nn.Module] = []
        self._groups: list[_BranchGroup] = []

    def __deepcopy__(self, memo: object) -> DecodeStep:
        return DecodeStep()

    def __call__(
        self,
        layers: Sequence[Layer],
        x: mx.array,
        masks: Masks,
        states: Sequence[LayerState],
        memory: Sequence[KV] | None,
    ) -> mx.array:
        """(B, 1, D) -> (B, 1, D). Every state advances by one slot."""
        if not self._is_planned(layers):
            self._plan(layers, masks, has_memory=memory is not None)
        tokens = [_Token(masks, state, kv) for state, kv in zip(states, memory or repeat(None), strict=False)]
        for group in self._groups:
            x = _run_branches(group, x, tokens)
        return x

    def _is_planned(self, layers: Sequence[Layer]) -> bool:
        same = len(layers) == len(self._layers) and all(map(is_, layers, self._layers))
        # Modules are dicts of their arrays and modules; reading attributes takes five times as long.
        return same and all(map(is_, map(getitem, self._owners, self._names), self._modules))

    def _plan(self, layers: Sequence[Layer], masks: Masks, *, has_memory: bool) -> None:
        self._layers, self._groups = list(layers), []
        both = [part for layer in layers for part in (layer.mixer, layer.feed_forward)]
        parents = [part for part in both if isinstance(part, SelfAttention | MLP)]
        norms = [norm for layer in layers for norm in (layer.mixer_norm, layer.feed_forward_norm)]
        named: list[tuple[nn.Module, str]] = [
            (parent, name) for parent in parents for name in (*parent.LINEARS, *_HEAD_NORMS) if name in parent
        ]
        named += product(norms, _NORMS)
        self._owners, self._names = [parent for parent, _ in named], [name for _, name in named]
        self._modules = [parent[name] for parent, name in named]
        for i, layer in enumerate(layers):
            for branch in _branches(i, layer, is_biased=masks.bias is not None, has_memory=has_memory):
                self._add(branch)

    def _add(self, branch: _Branch) -> None:
        if branch.plan is None or not self._groups or not self._groups[-1].plans:
            self._groups.append(_BranchGroup([], [], [], []))
        group = self._groups[-1]
        group.branches.append(branch)
        if branch.plan is not None:
            group.plans.append(branch.plan)
            group.owners.extend(owner for owner, _ in branch.arrays)
            group.names.extend(name for _, name in branch.arrays)


def _branches(number: int, layer: Layer, *, is_biased: bool, has_memory: bool) -> Iterator[_Branch]:
    attention = layer.mixer
    attend = _Branch(number, lambda x, t: layer.attend(x, t.masks, t.state))
    if isinstance(attention, SelfAttention) and not is_biased:
        s, t = attention.spec, attention.spec.temperature
        params = AttentionParams(
            s.num_heads,
            s.scale,
            s.logit_softcap or 0.0,
            t.floor if t else 0.0,
            t.scale if t else 0.0,
            s.rope is not None and s.rope.interleaved,
            *(attention[name].weights for name in _HEAD_NORMS),
        )
        attend = _with_plan(attend._replace(attention=attention), params, layer.mixer_norm, attention, _HEAD_NORMS)
    yield attend
    if has_memory:
        yield _Branch(number, lambda x, t: layer.cross_attend(x, t.masks, t.memory))
    feed, mlp = _Branch(number, lambda x, t: layer.feed(x)), layer.feed_forward
    if isinstance(mlp, MLP):
        feed = _with_plan(feed, MLPParams(mlp.activation, mlp.is_gated), layer.feed_forward_norm, mlp, ())
    yield feed


def _with_plan(
    branch: _Branch,
    params: AttentionParams | MLPParams,
    norm: ResidualNorm,
    parent: SelfAttention | MLP,
    norms: Sequence[str],
) -> _Branch:
    """The branch with its plan, if the native op supports its layers."""
    linears = [parent[name] for name in parent.LINEARS if name in parent]
    weights = [linear.weights for linear in linears]
    if not decode_step.can_plan(weights, params.activation if isinstance(params, MLPParams) else None):
        return branch
    every = [
        *product([norm[name] for name in _NORMS], _NORM_ARRAYS),
        *product(linears, _LINEAR_ARRAYS),
        *product([parent[name] for name in norms], _NORM_ARRAYS),
    ]
    present = [name in owner for owner, name in every]
    plan = decode_step.plan([norm[name].weights for name in _NORMS], params, weights, present)
    return branch._replace(plan=plan, arrays=[each for each, has in zip(every, present, strict=True) if has])


def _run_branches(group: _BranchGroup, x: mx.array, tokens: Sequence[_Token]) -> mx.array:
    """(B, 1, D) -> (B, 1, D) after the branches."""
    if group.plans:
        weights = list(map(getitem, group.owners, group.names))
        slots = [_slots(branch.attention, tokens[branch.layer]) for branch in group.branches if branch.attention]
        if decode_step.supports(x, weights, *(each.parts for each in slots)):
            x = decode_step.run(x, Branches(group.plans, weights, slots))
            for branch in group.branches:
                if branch.attention is not None:
                    cast(KeyValues, tokens[branch.layer].state).commit(x)
            return x
    for branch in group.branches:
        x = branch.composed(x, tokens[branch.layer])
    return x


def _slots(attention: SelfAttention, token: _Token) -> Slots:
    masks, state = token.masks, cast(KeyValues, token.state)
    parts, at, after = state.reserve()
    oldest, position = masks.rows(attention.spec.mask, parts[0].shape[0])
    first = [slot - state.start for slot in oldest] if state.start else oldest
    wavelengths, magnitude = (None, 1.0) if attention.rotate is None else attention.rotate.table(masks.span)
    return Slots(parts, at, first, position, after, wavelengths, magnitude, state.packing(attention.spec.head_dim))
