"""Lines of mlx-lm's classes that compute something else than the model does, replaced after loading."""

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
    "silu": nn.silu,
}


def mend(model: nn.Module, kind: str, config: Mapping[str, Any]) -> None:
    """Replace what is wrong in a model of this type. Raises CheckpointError for an activation that is not known."""
    for name, make in _MENDS.get(kind, {}).items():
        call = make(config)
        for module in model.modules():
            if type(module).__name__ == name:
                module.__class__ = type(name, (type(module),), {"__call__": call})
    for path, module in model.named_modules():
        if kind in _INDEXED and path.endswith("indexer.k_norm"):
            module.eps = 1e-6
        if kind == "ernie4_5_moe" and type(module).__name__ == "Ernie4_5_MoeMLP":
            module.selection_bias = mx.zeros(module.gate.weight.shape[0])


def _activation(config: Mapping[str, Any]) -> Callable[[mx.array], mx.array]:
    name = config.get("hidden_act") or config.get("activation_function") or "gelu_pytorch_tanh"
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"activation {name!r} of config.json is not supported",
            cause=f"known are {', '.join(ACTIVATIONS)}",
            remedy="a checkpoint of another family",
        )
    return ACTIVATIONS[name]


def _plain_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """The class has exact GELU, whatever the config says."""
    act = _activation(config)
    return lambda self, x: self.c_proj(act(self.c_fc(x)))


def _gemma_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """The class has exact GELU; checkpoints that say "gelu" mean its approximation (transformers#29402)."""
    name = config.get("hidden_activation") or "gelu_pytorch_tanh"
    act = _activation({"hidden_act": name})
    return lambda self, x: self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


def _jamba_experts(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """The class shares out one among the chosen experts; Jamba's weights are those of all."""

    def call(self: Any, x: mx.array) -> mx.array:
        weights = mx.softmax(self.router(x), axis=-1, precise=True)
        k = self.num_experts_per_tok
        chosen = mx.stop_gradient(mx.argpartition(-weights, kth=k - 1, axis=-1)[..., :k])
        y = self.switch_mlp(x, chosen)
        return (y * mx.take_along_axis(weights, chosen, axis=-1)[..., None]).sum(axis=-2)

    return call


def _neox_mlp(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """The class has approximate GELU, whatever the config says."""
    act = _activation({"hidden_act": config.get("hidden_act") or "gelu"})
    return lambda self, x: self.dense_4h_to_h(act(self.dense_h_to_4h(x)))


def _ernie_experts(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """The class leaves out the bias by which experts are chosen, and not weighed."""

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
    """The class divides what goes into a head of its own, and not what goes into the token table."""
    from mlx_lm.models.minicpm3 import Model

    factor = config.get("dim_model_base", 256) / config.get("hidden_size", 2560)

    def call(self: Any, inputs: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:
        logits = Model.__call__(self, inputs, cast(mx.array, mask), cache)
        return logits * factor if self.args.tie_word_embeddings else logits

    return call


def _mamba2_norm(config: Mapping[str, Any]) -> Callable[..., mx.array]:
    """The class norms all channels together; Mamba 2 each group of them."""
    groups = config.get("n_groups", 8)

    def call(self: Any, hidden: mx.array, gate: mx.array | None = None) -> mx.array:
        if gate is not None:
            hidden = nn.silu(gate) * hidden
        grouped = mx.unflatten(hidden, -1, (groups, -1))
        return self.weight * mx.flatten(mx.fast.rms_norm(grouped, None, self.eps), -2)

    return call


# Type -> class of mlx-lm's -> what makes its `__call__`, given the config.
_MENDS: dict[str, dict[str, Callable[[Mapping[str, Any]], Callable[..., mx.array]]]] = {
    "ernie4_5_moe": {"Ernie4_5_MoeMLP": _ernie_experts},
    "gemma": {"MLP": _gemma_mlp},
    "gpt_neox": {"MLP": _neox_mlp},
    "gpt_bigcode": {"MLP": _plain_mlp},
    "jamba": {"JambaSparseMoeBlock": _jamba_experts},
    "mamba2": {"MambaRMSNormGated": _mamba2_norm},
    "minicpm3": {"Model": _minicpm3},
    "starcoder2": {"MLP": _plain_mlp},
}
_INDEXED = frozenset({"deepseek_v32", "glm_moe_dsa"})  # their keys are normed with 1e-6
# Config keys that a mend obeys, beside those that the class reads.
OBEYED: dict[str, frozenset[str]] = {
    "gemma": frozenset({"hidden_act"}),
    "gpt_bigcode": frozenset({"activation_function"}),
    "gpt_neox": frozenset({"hidden_act"}),
    "starcoder2": frozenset({"hidden_act"}),
}
