"""Config defaults of transformers that mlx-lm lacks: `python -m tests.families.foreign_defaults`.

Writes macllm/families/class_defaults.json: for each type that both know, the values that a config.json may leave
out because they are transformers' defaults, where mlx-lm's class has another default, needs the value, or never
reads it. Values that follow from other values (a list with one entry a layer) are left to the rules of
macllm/families/spellings.py.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from macllm.families.foreign import args_class

PATH = Path(__file__).parents[2] / "macllm" / "families" / "class_defaults.json"
# Fields without effect on logits, without a cache and outside training.
INERT = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "auto_map", "bos_token_id", "chunk_size",
    "chunk_size_feed_forward", "classifier_dropout", "dtype", "embd_pdrop", "embedding_dropout", "emb_pdrop",
    "eos_token_id", "eod_token_id", "hidden_dropout", "id2label", "initializer_range", "initializer_factor",
    "input_jitter_noise", "is_decoder", "is_encoder_decoder", "label2id", "mamba_chunk_size", "model_type",
    "moe_shared_expert_overlap", "mtp_loss_scaling_factor", "num_logits_to_keep", "num_nextn_predict_layers",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp",
    "problem_type", "rescale_prenorm_residual", "resid_pdrop", "residual_dropout", "residual_in_fp32", "return_dict",
    "router_aux_loss_coef", "router_jitter_noise", "time_step_floor", "time_step_init_scheme", "time_step_scale",
    "torch_dtype", "transformers_version", "use_associative_scan", "use_cache", "use_mamba_kernels", "use_mambapy",
    "final_w_init_variance_scale", "w_init_variance_scale", "mamba_ssm_cache_dtype", "block_size", "max_seq_len",
    "linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor",
    "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "mtp_layers_block_type", "mtp_layer_types",
    "mtp_mlp_layer_types", "vision_config", "audio_config", "text_config", "model_max_length", "use_qk_norm_in_fp32",
})  # fmt: skip
# Changed together to find the values that a config class derives from others.
OTHER = {
    "num_hidden_layers": 11, "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 12,
    "n_layer": 11, "num_layers": 11, "head_dim": 96, "qk_rope_head_dim": 48, "qk_nope_head_dim": 48,
}  # fmt: skip
# Keys that a class reads but applies differently from transformers.
DIFFERENT = {"ministral3": {"sliding_window"}, "phimoe": {"num_experts_per_tok"}}


def table() -> dict[str, dict[str, Any]]:
    """The defaults of every type that transformers and mlx-lm both have."""
    from transformers import CONFIG_MAPPING

    found: dict[str, dict[str, Any]] = {}
    for kind in sorted(CONFIG_MAPPING):
        try:
            reads = reads_of(kind)
            plain = CONFIG_MAPPING[kind]().to_dict()
        except (Exception, SystemExit):  # unknown to mlx-lm or to transformers
            continue
        other = changed(kind, plain)
        own = {
            key: value
            for key, value in plain.items()
            if key not in INERT
            and (key in OTHER or value == other.get(key))
            and not (isinstance(value, dict | list) and value and key not in ("rope_parameters", "time_step_limit"))
            and (key in unread(kind) or reads.get(key, dataclasses.MISSING) != value)
        }
        if own:
            found[kind] = own
    return found


def changed(kind: str, plain: dict[str, Any]) -> dict[str, Any]:
    """A config of this type with the values of OTHER, as far as they are compatible."""
    from transformers import CONFIG_MAPPING

    given = {key: value for key, value in OTHER.items() if key in plain}
    for options in (given, {"num_hidden_layers": OTHER["num_hidden_layers"]}):
        try:
            return CONFIG_MAPPING[kind](**options).to_dict()
        except Exception:
            continue
    return plain


@cache
def unread(kind: str) -> frozenset[str]:
    """Fields that mlx-lm's class for `kind` declares and no code of its module or bases reads."""
    found, seen, todo = set(DIFFERENT.get(kind, ())), set(), [args_class(kind).__module__]
    named = {"model_type"}
    while todo:
        module = import_module(todo.pop())
        seen.add(module.__name__)
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                named.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
            elif isinstance(node, ast.ImportFrom) and node.level:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                todo += [f"mlx_lm.models.{name}" for name in names if f"mlx_lm.models.{name}" in sys.modules]
                todo = [name for name in todo if name not in seen]
    fields = {field.name for field in dataclasses.fields(args_class(kind))}
    return frozenset(found | (fields - named) - INERT)


def all_unread() -> dict[str, list[str]]:
    """Fields that a class declares and does not read, for every type in the table that has any."""
    return {kind: sorted(unread(kind)) for kind in table() if unread(kind)}


def reads_of(kind: str) -> dict[str, Any]:
    """The fields of mlx-lm's class for `kind`, with their defaults."""
    fields = dataclasses.fields(args_class(kind))
    return {field.name: field.default for field in fields}


if __name__ == "__main__":
    import transformers

    value = {"transformers": transformers.__version__, "types": table(), "unread": all_unread()}
    PATH.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(value['types'])} types in {PATH}")
