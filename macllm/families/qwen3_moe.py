"""Qwen 3 MoE: Qwen 3 with many small experts. arXiv:2505.09388."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import Causal, DecoderSpec, LayerSpec, MLPSpec, MoESpec
from macllm.weights.keymap import KeyMap, Rule, StackExperts

from . import llama, mixtral, qwen3
from .config import Config

OURS = "decoder.layers.{i}.feed_forward."
THEIRS = "model.layers.{i}.mlp."


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    mask = llama.window(config) if config["use_sliding_window"] else Causal()
    attention = replace(qwen3.attention(config), mask=mask)
    layers = tuple(
        LayerSpec(mixer=attention, feed_forward=feed_forward(config, i), norm=llama.norm(config))
        for i in range(config["num_hidden_layers"])
    )
    return llama.decoder(config, layers, llama.norm(config))


def feed_forward(config: Config, i: int) -> MLPSpec | MoESpec:
    """Experts in every `decoder_sparse_step`-th layer except `mlp_only_layers`; else a dense MLP."""
    dense = i in config["mlp_only_layers"] or (i + 1) % config["decoder_sparse_step"] != 0
    if dense or not num_experts(config):
        return llama.mlp(config)
    return MoESpec(
        expert=replace(llama.mlp(config), hidden=config["moe_intermediate_size"]),
        num_experts=num_experts(config),
        top_k=config["num_experts_per_tok"],
        router="softmax",
        renormalize=config.get("norm_topk_prob", False),
    )


def num_experts(config: Config) -> int:
    """The number of experts; its key differs between transformers 4 and 5."""
    return config.get("num_local_experts", config["num_experts"])


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    count = num_experts(config)
    experts = (
        StackExperts(f"{THEIRS}experts.{{e}}.{p}_proj.weight", f"{OURS}experts.{p}_proj.weight", count)
        for p in ("gate", "up", "down")
    )
    return llama.keymap(config, *_shared(), *experts)


def module_keys(config: Config) -> KeyMap:
    """Names of transformers' modules, from version 5 on; PEFT takes the dense MLPs for experts."""
    experts = mixtral.fused_experts(THEIRS, config["moe_intermediate_size"])
    return llama.keymap(config, *map(_as_parameter, _shared()), *experts)


def _as_parameter(rule: Rule) -> Rule:
    if ".mlp." not in rule.theirs:
        return rule
    return Rule(rule.theirs.replace("*", "weight"), rule.ours.replace("*", "weight"))


def mlx_keys(config: Config) -> KeyMap:
    """Tensor names as mlx-lm writes them: experts stacked."""
    experts = (Rule(f"{THEIRS}switch_mlp.{p}_proj.*", f"{OURS}experts.{p}_proj.*") for p in ("gate", "up", "down"))
    return llama.keymap(config, *_shared(), *experts)


def _shared() -> tuple[Rule, ...]:
    router = Rule(THEIRS + "gate.*", OURS + "router.*")
    return (*llama.ATTENTION, *llama.MLP, *llama.PRE_NORMS, *llama.HEAD_QK_NORMS, router)
