"""Objectives in a table: the models and rows that each takes, its settings and default rates.

A new objective is a row here, a module of `macllm.train.objectives`, and a mixin of its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from macllm.nn.info import ModelKind

from ..rows.kinds import Chat, PlainText, Preference, PromptCompletion, PromptOnly, Row, TaggedWords, UnpairedPreference
from .rates import ANSWERS, PREFERENCES, Rate

FinetuneObjective = Literal[
    "sft", "dpo", "kto", "orpo", "simpo", "distil", "classify", "tag", "reward", "grpo", "ppo", "seq2seq"
]
PretrainObjective = Literal["clm", "mlm", "span", "infill", "seq2seq"]
AnyObjective = FinetuneObjective | PretrainObjective

_EXPERTS = ("router_aux_loss_coef", "router_z_loss_coef")
_CORRUPTED = ("mask_ratio", "span_length")
_GENERATED = (
    "rewards", "reward_weights", "answer_feature", "judge", "num_generations", "max_completion_length",
    "num_iterations", "num_minibatches", "kl_coefficient", "clip_low", "clip_high",
)  # fmt: skip
_LANGUAGE = (Chat, PromptCompletion, PlainText)


@dataclass(frozen=True, kw_only=True)
class ObjectiveInfo:
    """Facts about an objective.

    `module` of `macllm.train.objectives` has its class and `of`, which makes it for a run. It trains models of `kind`,
    or the `head` for labels of texts or of words of any kind, on rows of the kinds `rows`. `reads` are the settings
    that it reads and not every objective does; `rates` are the defaults of fine-tuning.
    """

    module: str
    rows: tuple[type[Row], ...]
    kind: ModelKind = "decoder"
    head: Literal["sequence", "token"] | None = None
    reads: tuple[str, ...] = ()
    rates: tuple[Rate, ...] = ANSWERS


OBJECTIVES: Mapping[AnyObjective, ObjectiveInfo] = {
    "sft": ObjectiveInfo(module="clm", rows=_LANGUAGE, reads=("mask_prompt", "packing", *_EXPERTS)),
    "dpo": ObjectiveInfo(
        module="dpo",
        rows=(Preference,),
        reads=("beta", "preference_loss", "label_smoothing", "reference"),
        rates=PREFERENCES,
    ),
    "kto": ObjectiveInfo(
        module="kto",
        rows=(Preference, UnpairedPreference),
        reads=("beta", "desirable_weight", "undesirable_weight", "reference"),
        rates=PREFERENCES,
    ),
    "orpo": ObjectiveInfo(module="orpo", rows=(Preference,), reads=("beta",), rates=PREFERENCES),
    "simpo": ObjectiveInfo(module="simpo", rows=(Preference,), reads=("beta", "gamma"), rates=PREFERENCES),
    "distil": ObjectiveInfo(
        module="distil",
        rows=_LANGUAGE,
        reads=(
            "mask_prompt", "teacher", "divergence", "jsd_weight", "distil_temperature", "data_weight", "teacher_top",
            "teacher_others", "teacher_first",
        ),
    ),
    "classify": ObjectiveInfo(module="classify", rows=(PlainText,), head="sequence"),
    "tag": ObjectiveInfo(module="tag", rows=(TaggedWords,), head="token"),
    "reward": ObjectiveInfo(module="reward", rows=(Preference,), head="sequence", reads=("centering",)),
    "grpo": ObjectiveInfo(
        module="grpo",
        rows=(PromptOnly,),
        reads=(*_GENERATED, "policy_loss", "importance", "scale_rewards", "leave_one_out"),
        rates=PREFERENCES,
    ),
    "ppo": ObjectiveInfo(
        module="ppo",
        rows=(PromptOnly,),
        reads=(*_GENERATED, "discount", "gae_lambda", "value_coefficient", "value_clip", "whiten"),
        rates=PREFERENCES,
    ),
    "seq2seq": ObjectiveInfo(
        module="seq2seq", rows=(PromptCompletion,), kind="encoder-decoder", reads=("label_smoothing_factor",)
    ),
    "clm": ObjectiveInfo(module="clm", rows=_LANGUAGE, reads=("mask_prompt", "packing", *_EXPERTS)),
    "mlm": ObjectiveInfo(module="mlm", rows=(PlainText,), kind="encoder", reads=("mask_ratio",)),
    "span": ObjectiveInfo(module="span", rows=(PlainText,), kind="encoder-decoder", reads=_CORRUPTED),
    "infill": ObjectiveInfo(
        module="infill", rows=(PlainText,), kind="encoder-decoder", reads=(*_CORRUPTED, "permute_sentences")
    ),
}  # fmt: skip


def unread(objective: AnyObjective) -> list[str]:
    """The settings that only other objectives read."""
    own = OBJECTIVES[objective].reads
    return [name for name in dict.fromkeys(name for each in OBJECTIVES.values() for name in each.reads)
            if name not in own]  # fmt: skip
