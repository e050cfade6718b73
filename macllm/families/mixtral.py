"""Mixtral: Mistral with eight experts, two per token. arXiv:2401.04088."""

from __future__ import annotations

from dataclasses import replace

from macllm.errors import CheckpointError
from macllm.nn.spec import DecoderSpec, LayerSpec, MoESpec
from macllm.weights.keymap import AnyRule, KeyMap, Rule, Split, StackExperts

from . import llama
from .config import Config

OURS = "decoder.layers.{i}.feed_forward."
THEIRS = "model.layers.{i}.block_sparse_moe."


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    if not config["num_local_experts"]:
        raise CheckpointError(
            "config.json has a mixtral model without experts",
            cause="num_local_experts is 0",
            remedy="use model_type mistral",
        )
    experts = MoESpec(
        expert=llama.mlp(config),
        num_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        router="softmax",
        renormalize=True,
    )
    attention = replace(llama.attention(config), mask=llama.window(config))
    layer = LayerSpec(mixer=attention, feed_forward=experts, norm=llama.norm(config))
    return llama.decoder(config, (layer,) * config["num_hidden_layers"], llama.norm(config))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    names, count = (("gate", "w1"), ("up", "w3"), ("down", "w2")), config["num_local_experts"]
    experts = (
        StackExperts(f"{THEIRS}experts.{{e}}.{w}.weight", f"{OURS}experts.{p}_proj.weight", count) for p, w in names
    )
    return llama.keymap(
        config, *llama.ATTENTION, *llama.PRE_NORMS, Rule(THEIRS + "gate.*", OURS + "router.*"), *experts
    )


def module_keys(config: Config) -> KeyMap:
    """Names of transformers' modules, from version 5 on."""
    theirs = "model.layers.{i}.mlp."
    return llama.keymap(
        config,
        *llama.ATTENTION,
        *llama.PRE_NORMS,
        Rule(theirs + "gate.weight", OURS + "router.weight"),
        *fused_experts(theirs, config["intermediate_size"]),
    )


def fused_experts(theirs: str, hidden: int, *, transpose: bool = False) -> tuple[AnyRule, ...]:
    """Names of stacked experts of width `hidden` within `theirs`, gate and up as one."""
    gate_up = tuple(f"{OURS}experts.{p}_proj.weight" for p in ("gate", "up"))
    return (
        Split(theirs + "experts.gate_up_proj", gate_up, (hidden, hidden), transpose=transpose),
        Rule(theirs + "experts.down_proj", OURS + "experts.down_proj.weight", transpose=transpose),
    )


def mlx_keys(config: Config) -> KeyMap:
    """Tensor names as mlx-lm writes them: experts stacked."""
    experts = (Rule(f"{THEIRS}switch_mlp.{p}_proj.*", f"{OURS}experts.{p}_proj.*") for p in ("gate", "up", "down"))
    return llama.keymap(
        config, *llama.ATTENTION, *llama.PRE_NORMS, Rule(THEIRS + "gate.*", OURS + "router.*"), *experts
    )
