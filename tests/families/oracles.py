"""Tiny random transformers models, one or more for each family and for each option its config has.

Weights are scaled up so that logits are not flat: flat logits hide a wrong mask. Sizes are odd where
the architecture allows it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {**SMALL, "type_vocab_size": 2, "num_hidden_layers": 3}
LONGFORMER = {"pad_token_id": 1, "type_vocab_size": 1}
SEQ2SEQ = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
T5 = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 80,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
GPT2 = {
    "vocab_size": 97,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MPT = {
    "vocab_size": 97,
    "d_model": 48,
    "n_heads": 6,  # no power of two
    "n_layers": 3,
    "max_seq_len": 64,
    "attn_config": {"softmax_scale": 0.3},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SMALL, "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": 5}
LLAMA4 = {
    **SMALL,
    "head_dim": 8,
    "intermediate_size": 40,
    "intermediate_size_mlp": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 6,
    "floor_scale": 4,
    "attn_scale": 0.3,
    "interleave_moe_layer_step": 2,
}
PHI3 = {**SMALL, "original_max_position_embeddings": 16}
BAND = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.3, 2.0, 3.0, 4.0]}


@dataclass(frozen=True)
class Case:
    """A transformers class with a config; `length` is that of the longest row in the batch."""

    name: str
    model: str
    config: str
    options: dict[str, Any]
    length: int = 23
    main: bool = False  # the case whose gradients are compared for the family

    @property
    def kind(self) -> str:
        """The call convention: "decoder", "encoder" or "text-to-text"."""
        if any(word in self.model for word in ("Conditional", "MTModel")):
            return "text-to-text"
        return "encoder" if self.name.startswith(("bert", "roberta", "longformer", "big_bird")) else "decoder"


def _llama(name: str, main: bool = False, length: int = 23, **options: Any) -> Case:
    return Case(name, "LlamaForCausalLM", "LlamaConfig", {**SMALL, **options}, length, main)


def _lm(name: str, cls: str, base: dict, main: bool = False, length: int = 23, **options: Any) -> Case:
    config = f"{cls}TextConfig" if cls in ("Gemma3", "Llama4") else f"{cls}Config"
    return Case(name, f"{cls}ForCausalLM", config, {**base, **options}, length, main)


def _encoder(name: str, cls: str, main: bool = False, length: int = 23, **options: Any) -> Case:
    return Case(name, f"{cls}ForMaskedLM", f"{cls}Config", {**ENCODER, **options}, length, main)


def _scaled(**parameters: Any) -> dict:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


CASES = [
    _llama("llama", main=True),
    _llama("llama-tied", tie_word_embeddings=True, num_key_value_heads=6),
    _llama("llama-multi-query", num_key_value_heads=1, head_dim=10),
    _llama("llama-biased", attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    _llama("llama-linear", **_scaled(rope_type="linear", factor=2.5)),
    _llama("llama-dynamic", length=37, max_position_embeddings=16, **_scaled(rope_type="dynamic", factor=2.0)),
    _llama("llama-dynamic-short", length=11, max_position_embeddings=16, **_scaled(rope_type="dynamic", factor=2.0)),
    _llama("llama-llama3", **_scaled(**BAND, original_max_position_embeddings=16)),
    _llama("llama-yarn", length=40, **_scaled(**YARN)),
    _llama("llama-yarn-wide", length=40, head_dim=34, **_scaled(**YARN)),
    _llama("llama-yarn-mscale", **_scaled(**YARN, mscale=1.0, mscale_all_dim=0.7, beta_fast=16, beta_slow=2)),
    _llama("llama-yarn-attention-factor", **_scaled(**YARN, attention_factor=1.3, truncate=False)),
    _llama("llama-longrope", length=37, **_scaled(**LONG, original_max_position_embeddings=16)),
    _llama("llama-longrope-short", length=13, **_scaled(**LONG, original_max_position_embeddings=16)),
    _lm("mistral", "Mistral", SMALL, main=True, sliding_window=7),
    _lm("mistral-full", "Mistral", SMALL, sliding_window=None, head_dim=10),
    _lm("mixtral", "Mixtral", SMALL, main=True, num_local_experts=5, num_experts_per_tok=2),
    _lm("mixtral-window", "Mixtral", SMALL, num_local_experts=4, num_experts_per_tok=1, sliding_window=6),
    _lm("qwen2", "Qwen2", SMALL, main=True),
    _lm("qwen2-window", "Qwen2", SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    _lm("qwen3", "Qwen3", SMALL, main=True, head_dim=10, tie_word_embeddings=True),
    _lm("qwen3-window", "Qwen3", SMALL, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    _lm("qwen3-biased", "Qwen3", SMALL, head_dim=8, attention_bias=True),
    _lm(
        "qwen3_moe",
        "Qwen3Moe",
        SMALL,
        main=True,
        head_dim=8,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=True,
    ),
    _lm(
        "qwen3_moe-mixed",
        "Qwen3Moe",
        SMALL,
        head_dim=8,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=False,
        mlp_only_layers=[1],
        decoder_sparse_step=2,
        use_sliding_window=True,
        sliding_window=6,
    ),
    _lm("gemma2", "Gemma2", GEMMA, main=True, attn_logit_softcapping=8.0, final_logit_softcapping=6.0),
    _lm("gemma2-uncapped", "Gemma2", GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
    _lm("gemma3_text", "Gemma3", GEMMA, main=True, layer_types=["sliding_attention"] * 3 + ["full_attention"]),
    _lm("gemma3_text-both-ways", "Gemma3", GEMMA, use_bidirectional_attention=True, final_logit_softcapping=5.0),
    _lm("gemma3_text-capped", "Gemma3", GEMMA, attn_logit_softcapping=0.5),
    _lm(
        "gemma3_text-scaled",
        "Gemma3",
        GEMMA,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    ),
    _lm("phi3", "Phi3", PHI3, main=True, length=37, **_scaled(**LONG, original_max_position_embeddings=16)),
    _lm("phi3-short", "Phi3", PHI3, length=14, sliding_window=9, **_scaled(**LONG)),
    _lm(
        "phi3-partial",
        "Phi3",
        {**PHI3, "hidden_size": 96, "num_attention_heads": 6},
        tie_word_embeddings=True,
        partial_rotary_factor=0.5,
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5, **LONG},
    ),
    _lm("olmo2", "Olmo2", SMALL, main=True),
    _lm("olmo2-biased", "Olmo2", SMALL, attention_bias=True, num_key_value_heads=3),
    _lm("llama4_text", "Llama4", LLAMA4, main=True),
    _lm(
        "llama4_text-yarn",
        "Llama4",
        LLAMA4,
        length=37,
        **_scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    _lm(
        "llama4_text-plain",
        "Llama4",
        {**LLAMA4, "interleave_moe_layer_step": 1, "num_experts_per_tok": 2},
        use_qk_norm=False,
        attn_temperature_tuning=False,
        no_rope_layer_interval=2,
    ),
    Case("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT2, main=True),
    Case(
        "gpt2-options",
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            **GPT2,
            "n_inner": 70,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
    ),
    Case("gpt2-unscaled", "GPT2LMHeadModel", "GPT2Config", {**GPT2, "scale_attn_weights": False}),
    Case("mpt", "MptForCausalLM", "MptConfig", MPT, main=True),
    Case("mpt-even", "MptForCausalLM", "MptConfig", {**MPT, "n_heads": 4, "attn_config": {}}),
    Case("bert", "BertForMaskedLM", "BertConfig", ENCODER, main=True),
    Case("bert-pooled", "BertModel", "BertConfig", {**ENCODER, "hidden_act": "relu"}),
    Case("roberta", "RobertaForMaskedLM", "RobertaConfig", {**ENCODER, "pad_token_id": 1}, main=True),
    Case("roberta-pooled", "RobertaModel", "RobertaConfig", {**ENCODER, "pad_token_id": 1, "type_vocab_size": 1}),
    _encoder("longformer", "Longformer", main=True, length=45, **LONGFORMER, attention_window=[8, 4, 16]),
    _encoder("longformer-wide", "Longformer", length=37, **LONGFORMER, attention_window=20),
    _encoder("longformer-default", "Longformer", **LONGFORMER),
    Case("longformer-pooled", "LongformerModel", "LongformerConfig", {**ENCODER, **LONGFORMER, "attention_window": 6}),
    _encoder("big_bird", "BigBird", main=True, length=45, block_size=4, num_random_blocks=2),
    _encoder("big_bird-even", "BigBird", length=48, block_size=6, num_random_blocks=1),
    _encoder("big_bird-plain", "BigBird", length=25, block_size=2, use_bias=False, rescale_embeddings=True),
    _encoder("big_bird-short", "BigBird", length=28, block_size=4, num_random_blocks=1, hidden_act="relu"),
    _encoder("big_bird-full", "BigBird", attention_type="original_full"),
    Case("big_bird-pooled", "BigBirdModel", "BigBirdConfig", {**ENCODER, "block_size": 2}),
    Case("t5", "T5ForConditionalGeneration", "T5Config", T5, main=True),
    Case(
        "t5-v1.1",
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    Case("t5-gated-silu", "T5ForConditionalGeneration", "T5Config", {**T5, "feed_forward_proj": "gated-silu"}),
    Case("bart", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ, main=True),
    Case(
        "bart-scaled",
        "BartForConditionalGeneration",
        "BartConfig",
        {**SEQ2SEQ, "scale_embedding": True, "activation_function": "relu"},
    ),
    Case("marian", "MarianMTModel", "MarianConfig", {**SEQ2SEQ, "scale_embedding": True}, main=True),
    Case(
        "marian-two-tables",
        "MarianMTModel",
        "MarianConfig",
        {
            **SEQ2SEQ,
            "share_encoder_decoder_embeddings": False,
            "tie_word_embeddings": False,
            "decoder_vocab_size": 83,
            "activation_function": "swish",
        },
    ),
]


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Deterministic random float32 weights for a name and a shape."""
    random = np.random.default_rng(zlib.crc32(f"{name} {shape}".encode()))
    values = random.standard_normal(shape)
    if "norm" in name.lower() or "ln_" in name:
        values = (0.0 if name.endswith("bias") else 1.0) + 0.2 * values
    else:
        values *= 1.2 / shape[-1] ** 0.5 if len(shape) > 1 else 0.3
    return values.astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Rows of unequal length, one of a single token, padded on the right."""

    tokens: np.ndarray  # (B, L)
    lengths: np.ndarray  # (B,)
    targets: np.ndarray  # (B, T), the decoder's input of an encoder-decoder

    @property
    def real(self) -> np.ndarray:
        """Mask of the tokens, False at padding: (B, L)."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


def batch(case: Case) -> Batch:
    """The input of a case."""
    random = np.random.default_rng(zlib.crc32(case.name.encode()))
    lengths = np.array([case.length, 1, case.length - 6])
    vocab_size = case.options["vocab_size"]
    tokens = random.integers(3, vocab_size, (3, case.length))
    real = np.arange(case.length) < lengths[:, None]
    tokens = np.where(real, tokens, case.options.get("pad_token_id", 0))
    targets = random.integers(3, case.options.get("decoder_vocab_size", vocab_size), (3, 11))
    return Batch(tokens, lengths, targets)


def write(case: Case, folder: Path) -> Any:
    """A checkpoint in `folder` as transformers writes it, and the transformers model that reads it."""
    import transformers
    from safetensors.numpy import load_file, save_file

    config = getattr(transformers, case.config)(**case.options)
    kind = getattr(transformers, case.model)
    kind._from_config(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    shapes = {name: array.shape for name, array in load_file(path).items()}
    save_file({name: tensor(name, shape) for name, shape in shapes.items()}, path, {"format": "pt"})
    return kind.from_pretrained(folder, attn_implementation="eager").float().eval()
