"""Settings of a longer context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from macllm.errors import UsageError

from .setting_group import MOST, SettingGroup
from .values import refuse_set

RopeScaling = Literal["keep", "linear", "yarn"]


@dataclass(frozen=True, kw_only=True)
class ContextSettings(SettingGroup):
    """Settings of full fine-tuning for a longer context; the new model's config.json has them."""

    SUBJECT = "Longer context"
    RANGES = (
        ("context_length", 0, MOST),
        ("rope_theta", 0.0, 1e12),
    )

    context_length: Annotated[int, "full: longest context of the new model, in tokens; 0: the model's"] = 0
    rope_scaling: Annotated[
        RopeScaling, "full: stretch rotary positions to context_length: yarn, linear; keep: leave them as they are"
    ] = "keep"
    rope_theta: Annotated[
        float, "full: base of the rotary wavelengths, larger for a longer context; 0: the model's"
    ] = 0.0

    @property
    def extends(self) -> bool:
        """True if the config of the model changes."""
        return bool(self.context_length or self.rope_theta)


def check(settings: ContextSettings, full: bool) -> None:
    """Raise UsageError for settings that an adapter has no place for, or that lack the length."""
    if not full:
        names = ("context_length", "rope_scaling", "rope_theta")
        refuse_set(settings, names, "method is lora: an adapter keeps its model's config.json, use --full")
    if settings.rope_scaling != "keep" and not settings.context_length:
        raise UsageError(
            f"rope_scaling cannot be {settings.rope_scaling}",
            cause="context_length is 0: the length to stretch to is not known",
            remedy="--context-length with the new length in tokens",
        )
