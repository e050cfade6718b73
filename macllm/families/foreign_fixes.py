"""Fixes for faulty computations in mlx-lm's classes, applied after loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import CheckpointError

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_fast": nn.gelu_approx,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "relu2": nn.relu2,
    "silu": nn.silu,
    "swish": nn.silu,
}


def apply_fixes(model: nn.Module, kind: str, config: Mapping[str, Any]) -> None:
    """Fix known faults of a model of this type. Raises CheckpointError for an unknown activation."""
    if "_no_grad" not in vars(model):  # the class of recurrent_gemma does not initialize its base, so cannot freeze
        nn.Module.__init__(model)
    for name, make in _MENDS.get(kind, {}).items():
        call = make(config)
        for module in model.modules():
            if type(module).__name__ == name:
                module.__class__ = type(name, (type(module),), {"__call__": call})
    for path, module in model.named_modules():
        if type(module).__name__ in _ROUTERS and all(hasattr(module, key) for key in _ROUTED_BY):
            module.__class__ = type("Router", (type(module),), {"__call__": _route})
        if kind == "mamba2" and isinstance(module, nn.RMSNorm):
            module.eps = config.get("layer_norm_epsilon", 1e-5)
        if kind in _INDEXED and path.endswith("indexer.k_norm"):
            module.eps = 1e-6
        if kind == "ernie4_5_moe" and type(module).__name__ == "Ernie4_5_MoeMLP":
            gate: Any = module.gate
            module.selection_bias = mx.zeros(gate.weight.shape[0])


def _activation(config: Mapping[str, Any]) -> Callable[[mx.array], mx.array]:
    name = config.get("hidden_act") or config.get("activation_function") or "gelu_pytorch_tanh"
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"activation {name!r} of config.json is not supported",
            cause=f"supported are {', '.join(ACTIVATIONS)}",
            remedy="a checkpoint of another family",
        )
    return ACTIVATIONS[name]


def _plain_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class always uses exact GELU and ignores the config."""
    act = _activation(config)
    return lambda self, x: self.c_proj(act(self.c_fc(x)))


def _gemma_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class uses exact GELU; "gelu" in these configs means the tanh one (transformers#29402)."""
    name = config.get("hidden_act") or "gelu"
    act = _activation({"hidden_act": "gelu_pytorch_tanh" if name == "gelu" else name})
    return lambda self, x: self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


def _jamba_experts(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class applies softmax to the chosen experts only; Jamba applies it to all."""

    def call(self: Any, x: mx.array) -> mx.array:
        weights = mx.softmax(self.router(x), axis=-1, precise=True)
        k = self.num_experts_per_tok
        chosen = mx.stop_gradient(mx.argpartition(-weights, kth=k - 1, axis=-1)[..., :k])
        y = self.switch_mlp(x, chosen)
        return (y * mx.take_along_axis(weights, chosen, axis=-1)[..., None]).sum(axis=-2)

    return call


def _neox_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class always uses approximate GELU and ignores the config."""
    act = _activation({"hidden_act": config.get("hidden_act") or "gelu"})
    return lambda self, x: self.dense_4h_to_h(act(self.dense_h_to_4h(x)))


def _nemotron_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class always uses squared ReLU and ignores the config."""
    act = _activation({"hidden_act": config.get("hidden_act") or "relu2"})
    return lambda self, x: self.down_proj(act(self.up_proj(x)))


@mx.compile
def _chosen(
    scores: mx.array, bias: mx.array, k: int, groups: int, kept: int, factor: float, renormalize: bool
) -> tuple[mx.array, mx.array]:
    """Experts of each token and their weights: (..., E) -> (..., k) twice.

    Experts of excluded groups are never chosen, and the weight of a single expert is renormalized too:
    arXiv:2412.19437 section 2.1.2, as in transformers' DeepseekV3TopkRouter.
    """
    scores = mx.sigmoid(scores.astype(mx.float32))
    biased = scores + bias
    if groups > 1:
        grouped = mx.unflatten(biased, -1, (groups, -1))
        best = mx.topk(grouped, 2, axis=-1).sum(axis=-1, keepdims=True)
        worst = mx.argpartition(best, kth=groups - kept - 1, axis=-2)[..., : groups - kept, :]
        grouped = mx.put_along_axis(grouped, mx.stop_gradient(worst), mx.array(-mx.inf), axis=-2)
        biased = mx.flatten(grouped, -2, -1)
    chosen = mx.stop_gradient(mx.argpartition(-biased, kth=k - 1, axis=-1)[..., :k])
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    if renormalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen, weights * factor


def _route(self: Any, x: mx.array) -> tuple[mx.array, mx.array]:
    """Fix: the class scores excluded groups 0, above a negative bias, and never renormalizes one expert."""
    return _chosen(x @ self.weight.T, self.e_score_correction_bias, *(getattr(self, key) for key in _ROUTED_BY))


def _ernie_experts(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class ignores the bias that affects the choice of experts, but not their weights."""

    def call(self: Any, x: mx.array) -> mx.array:
        weights = self.gate_act(self.gate(x).astype(mx.float32))
        chosen = mx.argpartition(-(weights + self.selection_bias), kth=self.k - 1, axis=-1)[..., : self.k]
        chosen = mx.stop_gradient(chosen)
        weights = mx.take_along_axis(weights, chosen, axis=-1)
        weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 1e-12)
        y = self.switch_mlp(x, chosen)
        y = (y * weights[..., None]).sum(axis=-2).astype(y.dtype)
        return y if self.shared_experts is None else y + self.shared_experts(x)

    return call


def _minicpm3(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class scales the input of a separate head, but not of a tied one."""
    from mlx_lm.models.minicpm3 import Model

    factor = config.get("dim_model_base", 256) / config.get("hidden_size", 2560)

    def call(self: Any, inputs: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:
        logits = Model.__call__(self, inputs, cast(mx.array, mask), cache)
        return logits * factor if self.args.tie_word_embeddings else logits

    return call


def _mamba2_norm(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """Fix: the class normalizes all channels together; Mamba 2 normalizes each group."""
    groups = config.get("mamba_n_groups", 1) if "mamba_n_heads" in config else config.get("n_groups", 8)

    def call(self: Any, hidden: mx.array, gate: mx.array | None = None) -> mx.array:
        if gate is not None:
            hidden = nn.silu(gate) * hidden
        grouped = mx.unflatten(hidden, -1, (groups, -1))
        return self.weight * mx.flatten(mx.fast.rms_norm(grouped, None, self.eps), -2)

    return call


# Type -> class of mlx-lm -> function from the config to the class's new `__call__`.
_MENDS: dict[str, dict[str, Callable[[Mapping[str, Any]], Callable[..., mx.array]]]] = {
    "ernie4_5_moe": {"Ernie4_5_MoeMLP": _ernie_experts},
    "gemma": {"MLP": _gemma_mlp},
    "granitemoehybrid": {"GraniteMoeHybridRMSNormGated": _mamba2_norm},
    "gpt_neox": {"MLP": _neox_mlp},
    "gpt_bigcode": {"MLP": _plain_mlp},
    "jamba": {"JambaSparseMoeBlock": _jamba_experts},
    "mamba2": {"MambaRMSNormGated": _mamba2_norm},
    "minicpm3": {"Model": _minicpm3},
    "nemotron": {"MLP": _nemotron_mlp},
    "starcoder2": {"MLP": _plain_mlp},
}
# mlx-lm's names of DeepSeek's router, and its attributes in the order of `_chosen`'s parameters.
_ROUTERS = frozenset({"MoEGate", "Dots1TopkRouter"})
_ROUTED_BY = ("top_k", "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob")
_INDEXED = frozenset({"deepseek_v32", "glm_moe_dsa"})  # the norm of their indexer's keys has an epsilon of 1e-6
# Config keys that a fix uses, in addition to those of the class.
OBEYED: dict[str, frozenset[str]] = {
    "gemma": frozenset({"hidden_act"}),
    "gpt_bigcode": frozenset({"activation_function"}),
    "gpt_neox": frozenset({"hidden_act"}),
    "nemotron": frozenset({"hidden_act"}),
    "starcoder2": frozenset({"hidden_act"}),
}
