"""Settings of optimizers and learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from macllm.errors import UsageError

from .setting_group import BELOW_ONE, MOST, SMALLEST, SettingGroup
from .values import refuse_set

OptimizerName = Literal["adamw", "muon", "lion"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]

_READERS: dict[str, tuple[OptimizerName, ...]] = {
    "adamw_rate": ("muon",),
    "beta2": ("adamw", "muon"),
    "epsilon": ("adamw", "muon"),
    "momentum": ("muon", "lion"),
    "first_moment_bits": ("adamw", "lion"),
}
_SCHEDULED: dict[str, tuple[Schedule, ...]] = {
    "decay": ("wsd",),
    "decay_steps": ("linear", "cosine"),
    "min_lr_ratio": ("linear", "cosine", "wsd"),
}


def unread(optimizer: OptimizerName) -> list[str]:
    """The settings that this optimizer does not read."""
    return [name for name, readers in _READERS.items() if optimizer not in readers]


@dataclass(frozen=True, kw_only=True)
class RateSettings(SettingGroup):
    """Settings of the optimizer and its learning rates."""

    SUBJECT = "Optimizer and learning rate"
    RANGES = (
        ("learning_rate", SMALLEST, MOST),
        *((name, 0.0, 1.0) for name in ("warmup", "decay", "min_lr_ratio")),
        *((name, 0, MOST) for name in ("decay_steps", "adamw_rate", "embedding_rate")),
        ("layer_decay", SMALLEST, 1.0),
    )

    optimizer: Annotated[
        OptimizerName, "adamw, muon (of hidden matrices; AdamW of the rest) or lion (a third of the rate or less)"
    ] = "adamw"
    learning_rate: Annotated[float, "peak learning rate"] = 2e-4
    schedule: Annotated[Schedule, "learning-rate schedule after warm-up (wsd: constant, then linear decay)"] = "cosine"
    warmup: Annotated[float, "share of the steps over which the learning rate rises from 0"] = 0.03
    warmup_init: Annotated[
        float, "relative rate of the first step; the last step of warm-up is at the peak; -1: evenly between"
    ] = -1.0
    decay_steps: Annotated[int, "cosine, linear: steps from peak to final rate; 0: up to the last step"] = 0
    decay: Annotated[float, "share of the steps over which a wsd schedule decays"] = 0.2
    min_lr_ratio: Annotated[float, "final learning rate, relative to the peak"] = 0.1
    adamw_rate: Annotated[float, "muon: peak learning rate of the weights of AdamW; 0: learning_rate"] = 0.0
    embedding_rate: Annotated[float, "peak learning rate of embeddings; 0: as other weights"] = 0.0
    layer_decay: Annotated[float, "learning rate of a layer relative to that of the next; 1: the same"] = 1.0

    def _check_effects(self) -> None:
        super()._check_effects()
        unused = [name for name, schedules in _SCHEDULED.items() if self.schedule not in schedules]
        refuse_set(self, unused, f"schedule is {self.schedule}")
        refuse_set(self, () if self.warmup else ("warmup_init",), "warmup is 0")
        refuse_set(self, unread(self.optimizer), f"optimizer is {self.optimizer}")
        if self.schedule == "wsd" and Fraction(str(self.warmup)) + Fraction(str(self.decay)) > 1:
            raise UsageError(
                "warmup and decay overlap",
                cause=f"they are {self.warmup} and {self.decay} of the steps, together over 1",
            )


@dataclass(frozen=True, kw_only=True)
class MomentSettings(SettingGroup):
    """Settings of an optimizer's moments, of weight decay and clipping."""

    SUBJECT = "Moments, decay and clipping"
    RANGES = (
        *((name, 0.0, BELOW_ONE) for name in ("beta1", "beta2", "momentum")),
        ("epsilon", SMALLEST, MOST),
        ("weight_decay", 0, MOST),
        ("max_grad_norm", 0, MOST),
    )

    beta1: Annotated[float, "AdamW: decay of the mean of the gradients; lion: its share in a step"] = 0.9
    beta2: Annotated[float, "AdamW: decay of the mean of the squared gradients"] = 0.999
    epsilon: Annotated[float, "AdamW: added to the denominator of the update"] = 1e-8
    momentum: Annotated[float, "muon, lion: decay of the mean of the gradients; 0: 0.95 for muon, 0.99 for lion"] = 0.0
    first_moment_bits: Annotated[int, "adamw, lion: bits of the mean of the gradients of matrices, 32 or 8"] = 32
    weight_decay: Annotated[float, "decoupled weight decay"] = 0.0
    decay_all: Annotated[bool, "decay norms, biases and embeddings too"] = False
    max_grad_norm: Annotated[float, "clip gradients to this global norm; 0: no clipping"] = 1.0

    def _check_effects(self) -> None:
        super()._check_effects()
        if self.first_moment_bits not in (8, 32):
            raise UsageError(f"first_moment_bits cannot be {self.first_moment_bits}", remedy="8 or 32")
        refuse_set(self, () if self.weight_decay else ("decay_all",), "weight_decay is 0")
