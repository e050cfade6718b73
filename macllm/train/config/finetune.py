"""Settings of fine-tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from macllm.errors import UsageError

from . import context, distillation, expert, mlx_lm, preference, reinforcement, reward
from .context import ContextSettings, RopeScaling
from .corruption import TEXT_TO_TEXT_RANGES, TextToTextSettings
from .distillation import DistillationSettings
from .objective import OBJECTIVES, FinetuneObjective, unread
from .preference import PreferenceSettings
from .rates import fitting
from .reinforcement import ReinforcementSettings
from .training import SMALLEST, TrainConfig
from .values import refuse_set

_FULL_DIVISOR = 10  # LoRA learns best at ten times the rate (Schulman et al. 2025, LoRA Without Regret)
_LION_DIVISOR = 5  # arXiv:2302.06675 has rates of a third to a tenth of AdamW's


Method = Literal["lora", "full"]
# Settings of adapters, which full fine-tuning has none of.
_OF_ADAPTERS = ("rank", "alpha", "use_rslora", "use_dora", "dropout", "keys", "modules_to_save", "lora_plus_ratio")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(
    ContextSettings,
    ReinforcementSettings,
    reward.RewardSettings,
    DistillationSettings,
    PreferenceSettings,
    TextToTextSettings,
    expert.ExpertSettings,
    TrainConfig,
):
    """Settings of fine-tuning with LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), or in full."""

    objective: Annotated[
        FinetuneObjective,
        "sft seq2seq; preferences: dpo kto orpo simpo reward; rewards: grpo ppo; classify tag; distil",
    ] = "sft"
    model: Annotated[str, "the checkpoint to adapt: a folder or a name on the hub"] = "maclet"
    adapter_path: Annotated[str, "the run's folder: the adapter, or with full model/; snapshots, metrics"] = "adapters"
    method: Annotated[Method, "train an adapter of low rank (lora), or the weights themselves (full)"] = "lora"
    num_layers: Annotated[
        int, "number of last layers to adapt; -1: all (full: and all weights outside of layers too)"
    ] = -1
    rank: Annotated[int, "rank of the update"] = 16
    alpha: Annotated[float, "the update is scaled by alpha / rank"] = 32.0
    use_rslora: Annotated[bool, "scale the update by alpha / sqrt(rank) instead (rsLoRA)"] = False
    use_dora: Annotated[bool, "train the norms of the adapted weights' rows too (DoRA)"] = False
    dropout: Annotated[float, "share of the adapter's inputs that are dropped while training"] = 0.0
    keys: Annotated[tuple[str, ...], "layers to adapt, as patterns (*.mixer.q_proj, self_attn.q_proj); empty: all"] = ()
    modules_to_save: Annotated[
        tuple[str, ...],
        "modules to train whole beside the adapter, as patterns (lm_head, embed_tokens, norm); empty: none",
    ] = ()
    learning_rate: Annotated[
        float, "peak learning rate; 0: by objective and model size (README); full a tenth, lion a fifth"
    ] = 0.0
    lora_plus_ratio: Annotated[
        float, "learning rate of B and DoRA's norms relative to A's (LoRA+), embeddings aside; 1: the same"
    ] = 1.0
    epochs: Annotated[float, "passes over the data, when `iters` is 0; 0: by objective and model size"] = 0.0

    _folder: ClassVar[str] = "adapter_path"
    _NO_EFFECT_ON_WEIGHTS: ClassVar[frozenset[str]] = TrainConfig._NO_EFFECT_ON_WEIGHTS | {"rewards"}  # by their hash
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        **TrainConfig._choices,
        **distillation.CHOICES,
        "method": get_args(Method),
        "objective": get_args(FinetuneObjective),
        **preference.CHOICES,
        **reinforcement.CHOICES,
        "rope_scaling": get_args(RopeScaling),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_rslora and self.rank == 1:
            raise UsageError("use_rslora has no effect", cause="rank is 1", remedy="leave use_rslora out")
        if self.num_layers == 0:
            raise UsageError("num_layers cannot be 0", cause="no layer would be trained", remedy="-1 for all layers")

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
        refuse_set(self, _OF_ADAPTERS if self.method == "full" else (), "method is full")
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

    def _ranges(self) -> list[tuple[str, float, float]]:
        own = [("rank", 1, 4096), ("num_layers", -1, 1e6), ("alpha", SMALLEST, 1e6), ("dropout", 0.0, 0.99)]
        own.append(("lora_plus_ratio", SMALLEST, 1e6))
        fitted = [name for name in ("learning_rate", "epochs") if getattr(self, name) == 0]
        more = [*preference.RANGES, *distillation.RANGES, *reward.RANGES, *reinforcement.RANGES]
        more += [*TEXT_TO_TEXT_RANGES, *expert.RANGES, *context.RANGES]
        return [*(one for one in super()._ranges() if one[0] not in fitted), *own, *more]
