"""Settings that only some objectives read."""

from __future__ import annotations

from typing import Literal

FinetuneObjective = Literal[
    "sft", "dpo", "kto", "orpo", "simpo", "distil", "classify", "tag", "reward", "grpo", "ppo", "seq2seq"
]
PretrainObjective = Literal["clm", "mlm", "span", "infill", "seq2seq"]

_READERS: dict[str, tuple[FinetuneObjective, ...]] = {
    "mask_prompt": ("sft", "distil"),
    "packing": ("sft",),
    "beta": ("dpo", "kto", "orpo", "simpo"),
    "gamma": ("simpo",),
    "teacher": ("distil",),
    "divergence": ("distil",),
    "jsd_weight": ("distil",),
    "distil_temperature": ("distil",),
    "data_weight": ("distil",),
    "teacher_top": ("distil",),
    "teacher_others": ("distil",),
    "teacher_first": ("distil",),
    "centering": ("reward",),
    "preference_loss": ("dpo",),
    "label_smoothing": ("dpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "reference": ("dpo", "kto"),
    **dict.fromkeys(
        ("rewards", "reward_weights", "answer_feature", "judge", "num_generations", "max_completion_length"),
        ("grpo", "ppo"),
    ),
    **dict.fromkeys(("num_iterations", "num_minibatches", "kl_coefficient", "clip_low", "clip_high"), ("grpo", "ppo")),
    **dict.fromkeys(("policy_loss", "importance", "scale_rewards", "leave_one_out"), ("grpo",)),
    **dict.fromkeys(("discount", "gae_lambda", "value_coefficient", "value_clip", "whiten"), ("ppo",)),
    "router_aux_loss_coef": ("sft",),
    "router_z_loss_coef": ("sft",),
    "label_smoothing_factor": ("seq2seq",),
}
_PRETRAIN_READERS: dict[str, tuple[PretrainObjective, ...]] = {
    "router_aux_loss_coef": ("clm",),
    "router_z_loss_coef": ("clm",),
    "mask_prompt": ("clm",),
    "packing": ("clm",),
    "mask_ratio": ("mlm", "span", "infill"),
    "span_length": ("span", "infill"),
    "permute_sentences": ("infill",),
    "label_smoothing_factor": ("seq2seq",),
}


def unread(objective: FinetuneObjective) -> list[str]:
    """The settings that this objective does not read."""
    return [name for name, readers in _READERS.items() if objective not in readers]


def unread_in_pretraining(objective: PretrainObjective) -> list[str]:
    """The settings that this objective of pretraining does not read."""
    return [name for name, readers in _PRETRAIN_READERS.items() if objective not in readers]
