"""Settings of fine-tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from macllm.errors import UsageError

from . import context, distillation, mlx_lm, preference, reinforcement
from .adapter import AdapterSettings
from .context import ContextSettings
from .corruption import TextToTextSettings
from .distillation import DistillationSettings
from .expert import ExpertSettings
from .objective import OBJECTIVES, FinetuneObjective, unread
from .preference import PreferenceSettings
from .rates import fitting
from .reinforcement import ReinforcementSettings
from .reward import RewardSettings
from .setting_group import Range
from .training import TrainConfig
from .values import refuse_set

_FULL_DIVISOR = 10  # LoRA learns best at ten times the rate (Schulman et al. 2025, LoRA Without Regret)
_LION_DIVISOR = 5  # arXiv:2302.06675 has rates of a third to a tenth of AdamW's


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(
    AdapterSettings,
    ContextSettings,
    ReinforcementSettings,
    RewardSettings,
    DistillationSettings,
    PreferenceSettings,
    TextToTextSettings,
    ExpertSettings,
    TrainConfig,
):
    """Settings of fine-tuning with LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), or in full."""

    SUBJECT = "Objective"

    objective: Annotated[
        FinetuneObjective,
        "sft seq2seq distil; pairs: dpo kto orpo simpo reward; rewards: grpo ppo; labels: classify tag",
    ] = "sft"
    learning_rate: Annotated[
        float, "peak learning rate; 0: by objective and model size (README); full a tenth, lion a fifth"
    ] = 0.0
    epochs: Annotated[float, "passes over the data, when `iters` is 0; 0: by objective and model size"] = 0.0

    _folder: ClassVar[str] = "adapter_path"
    _NO_EFFECT_ON_WEIGHTS: ClassVar[frozenset[str]] = TrainConfig._NO_EFFECT_ON_WEIGHTS | {"rewards"}  # by their hash

    @property
    def result(self) -> str:
        """The folder of the adapter, or of the model."""
        return str(Path(self.folder) / "model") if self.method == "full" else self.folder

    def _check_effects(self) -> None:
        super()._check_effects()
        refuse_set(self, unread(self.objective), f"objective is {self.objective}")
        distillation.check(self, self.objective == "distil")
        preference.check(self, self.method == "full")
        reinforcement.check(self, self.objective, self.method)
        context.check(self, self.method == "full")
        # With DoRA or patterns it depends on the layers adapted.
        if self.decay_all and self.method == "lora" and not (self.use_dora or self.keys or self.modules_to_save):
            cause = "the adapter has matrices only, and none of an embedding"
            raise UsageError("decay_all has no effect", cause=cause, remedy="weight_decay alone")

    def fitted(self, parameters: int) -> Self:
        """The config with default learning rate and epochs for a model with this number of parameters."""
        _, rate, epochs = fitting(OBJECTIVES[self.objective].rates, parameters)
        rate /= _LION_DIVISOR if self.optimizer == "lion" else 1
        rate /= _FULL_DIVISOR if self.method == "full" else 1
        return dataclasses.replace(
            self,
            learning_rate=self.learning_rate or rate,
            epochs=self.epochs if self.iters or self.epochs else epochs,
            rewards=tuple(reinforcement.located(self.rewards, Path())),
        )

    @classmethod
    def _read(cls, path: Path) -> dict[str, Any]:
        """The settings in a file, TOML or mlx-lm's YAML."""
        if path.suffix in mlx_lm.SUFFIXES:
            return mlx_lm.read(path).values
        values = super()._read(path)
        rewards: Any = values.get("rewards")
        if isinstance(rewards, list):
            values["rewards"] = reinforcement.located(cast("list[Any]", rewards), path.parent)
        return values

    @classmethod
    def _is_path(cls, name: str, value: Any, folder: Path) -> bool:
        if name in ("model", "teacher") and isinstance(value, str):  # else a name on the hub
            return value.startswith(".") or (folder / value / "config.json").is_file()
        return super()._is_path(name, value, folder)

    def _ranges(self) -> list[Range]:
        fitted = [name for name in ("learning_rate", "epochs") if getattr(self, name) == 0]
        return [one for one in super()._ranges() if one[0] not in fitted]
