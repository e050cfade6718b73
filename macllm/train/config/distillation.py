"""Settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from macllm.errors import UsageError

from .setting_group import SettingGroup
from .values import refuse_set

Divergence = Literal["forward", "reverse", "jsd"]
OtherTokens = Literal["bucket", "left-out"]


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(SettingGroup):
    """Settings of distillation."""

    SUBJECT = "Distillation"
    RANGES = (
        ("jsd_weight", 1e-6, 1 - 1e-6),
        ("distil_temperature", 0.01, 100.0),
        ("data_weight", 0.0, 0.999),
        ("teacher_top", 0, 1e6),
    )

    teacher: Annotated[str, "distil: the checkpoint to learn from, a folder or a name on the hub; empty: none"] = ""
    divergence: Annotated[
        Divergence, "distil: KL from teacher to student (forward), reverse KL, or Jensen-Shannon (jsd)"
    ] = "forward"
    jsd_weight: Annotated[float, "jsd: the teacher's share of the mixture that both are compared with"] = 0.5
    distil_temperature: Annotated[float, "distil: the logits of both models are divided by it"] = 1.0
    data_weight: Annotated[float, "distil: share of the cross-entropy of the rows themselves in the loss"] = 0.1
    teacher_top: Annotated[int, "distil: number of the teacher's likeliest tokens that are compared; 0: all"] = 0
    teacher_others: Annotated[
        OtherTokens, "teacher_top: all other tokens are compared as one (bucket), or not at all"
    ] = "bucket"
    teacher_first: Annotated[
        bool, "distil: run the teacher before training, and keep its teacher_top tokens on disk"
    ] = False


def check(config: Any, distils: bool) -> None:
    """Raise UsageError for settings that contradict each other; `distils` says that they are read."""
    if not distils:
        return
    if not config.teacher:
        raise UsageError("objective is distil, and there is no teacher", remedy="--teacher org/name, or a folder")
    if config.teacher_first and not config.teacher_top:
        raise UsageError(
            "teacher_first needs teacher_top",
            cause="all logits of a text take the size of the vocabulary on disk for each token",
            remedy="--teacher-top 64",
        )
    refuse_set(config, () if config.divergence == "jsd" else ("jsd_weight",), f"divergence is {config.divergence}")
    refuse_set(config, () if config.teacher_top else ("teacher_others",), "teacher_top is 0")
