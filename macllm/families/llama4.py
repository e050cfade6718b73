"""Llama 4 (text): chunked rotary layers, every fourth global without positions, shared expert."""

from __future__ import annotations

from dataclasses import replace

from macllm.errors import CheckpointError
from macllm.nn.spec import (
    AttentionSpec,
    Causal,
    Chunked,
    DecoderSpec,
    LayerSpec,
    LongScaling,
    MLPSpec,
    MoESpec,
    QKNormSpec,
    RoPESpec,
    TemperatureSpec,
    YarnScaling,
)
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule

from . import llama, mixtral
from .config import Config, layer_types

OURS = "decoder.layers.{i}.feed_forward."
THEIRS = "model.layers.{i}.feed_forward."


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    count = config["num_hidden_layers"]
    every = config.get("no_rope_layer_interval", 4)
    uses_rope = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(count)]
    if len(uses_rope) != count:
        raise CheckpointError(f"no_rope_layers lists {len(uses_rope)} layers, but num_hidden_layers is {count}")
    chunked = "chunked_attention" if config.get("attention_chunk_size") else "full_attention"
    default = [chunked if rotated else "full_attention" for rotated in uses_rope]
    kinds = layer_types(config, default, {chunked, "full_attention"})
    layers = tuple(
        LayerSpec(
            mixer=attention(config, kind, bool(rotated)),
            feed_forward=feed_forward(config, i),
            norm=llama.norm(config),
        )
        for i, (kind, rotated) in enumerate(zip(kinds, uses_rope, strict=True))
    )
    return llama.decoder(config, layers, llama.norm(config))


def attention(config: Config, kind: str, uses_rope: bool) -> AttentionSpec:
    """Attention with RoPE and unweighted QK norm, or with neither and a temperature by position."""
    base = llama.attention(config)
    base = replace(base, mask=Chunked(config["attention_chunk_size"]) if kind == "chunked_attention" else Causal())
    if not uses_rope:
        temperature = TemperatureSpec(floor=config.get("floor_scale", 8192), scale=config.get("attn_scale", 0.1))
        return replace(
            base, rope=None, temperature=temperature if config.get("attn_temperature_tuning", True) else None
        )
    assert isinstance(base.rope, RoPESpec)
    unit = QKNormSpec(norm=replace(llama.norm(config), weight=False), over="head")
    rope = replace(base.rope, interleaved=True)
    if not config.get("use_qk_norm", True):
        return replace(base, rope=rope)
    if isinstance(rope.scaling, YarnScaling | LongScaling):
        # The norm comes after RoPE and removes its magnitude; here the norm comes before, so the magnitude is 1.
        rope = replace(rope, scaling=replace(rope.scaling, magnitude=1.0))
    return replace(base, rope=rope, qk_norm=unit)


def feed_forward(config: Config, i: int) -> MLPSpec | MoESpec:
    """Experts in `moe_layers`, or in every `interleave_moe_layer_step`-th layer; else a dense MLP."""
    step = config.get("interleave_moe_layer_step", 1)
    sparse = config.get("moe_layers") if config.get("moe_layers") is not None else None
    if not (i in sparse if sparse is not None else i % step == step - 1):
        return replace(llama.mlp(config), hidden=config["intermediate_size_mlp"])
    return MoESpec(
        expert=llama.mlp(config),
        shared=llama.mlp(config),
        num_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        router="sigmoid",
        weigh="input",
    )


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config; experts are stored (E, in, out), gate and up as one."""
    experts = mixtral.fused_experts(THEIRS, config["intermediate_size"], transpose=True)
    return llama.keymap(config, *_shared(), *experts, *_vision_tensors())


def module_keys(config: Config) -> KeyMap:
    """Names of transformers' modules; its router returns more than a linear layer."""
    base, router = keys(config), Rule(THEIRS + "router.weight", OURS + "router.weight")
    return replace(base, rules=tuple(router if rule.theirs == THEIRS + "router.*" else rule for rule in base.rules))


def mlx_keys(config: Config) -> KeyMap:
    """Tensor names as mlx-lm writes them: experts stored (E, out, in), gate and up separate."""
    experts = (Rule(f"{THEIRS}experts.{p}_proj.*", f"{OURS}experts.{p}_proj.*") for p in ("gate", "up", "down"))
    return llama.keymap(config, *_shared(), *experts, *_vision_tensors())


def _shared() -> tuple[AnyRule, ...]:
    both = (("", ""), ("shared_expert.", "shared."))
    mlps = tuple(
        Rule(f"{THEIRS}{t}{p}_proj.*", f"{OURS}{o}{p}_proj.*") for t, o in both for p in ("gate", "up", "down")
    )
    return (*llama.ATTENTION, *llama.PRE_NORMS, *mlps, Rule(THEIRS + "router.*", OURS + "router.*"))


def _vision_tensors() -> tuple[AnyRule, ...]:
    return tuple(Drop(f"{part}.**") for part in ("vision_model", "multi_modal_projector", "model.vision_model"))
