"""Settings of training from random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from macllm.hub.names import bundled_folder, is_bundled

from .corruption import CorruptionSettings, TextToTextSettings
from .data import LongRows
from .expert import ExpertSettings
from .objective import PretrainObjective, unread
from .setting_group import SettingGroup
from .training import TrainConfig
from .values import refuse_set


@dataclass(frozen=True, kw_only=True)
class ModelSettings(SettingGroup):
    """Settings of the model to train from random weights."""

    SUBJECT = "Model"
    RANGES = (("init_std", 0.0, 1e3),)

    config: Annotated[str, "config.json of the model"] = "config.json"
    tokenizer: Annotated[str, "folder with the tokenizer's files, or a bundled model such as maclet"] = "."
    output: Annotated[str, "the run's folder: the checkpoint in model/, snapshots, metrics"] = "run"
    init_std: Annotated[float, "standard deviation of the initial weights"] = 0.02

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer's files."""
        bundled = is_bundled(self.tokenizer) and not Path(self.tokenizer).is_dir()
        return bundled_folder(self.tokenizer) if bundled else Path(self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(ModelSettings, ExpertSettings, TextToTextSettings, CorruptionSettings, TrainConfig):
    """Settings of training from random weights: a config.json, a tokenizer and data in, a checkpoint out."""

    SUBJECT = "Objective"

    objective: Annotated[
        PretrainObjective, "clm; of an encoder mlm; of an encoder with a decoder span (T5), infill (BART), or seq2seq"
    ] = "clm"
    learning_rate: Annotated[float, "peak learning rate"] = 1e-3
    beta2: Annotated[float, "AdamW: decay of the mean of the squared gradients"] = 0.95
    weight_decay: Annotated[float, "decoupled weight decay"] = 0.1
    long_rows: Annotated[LongRows, "how to handle longer rows; the numbers are reported"] = "split"
    epochs: Annotated[float, "passes over the data, when `iters` is 0"] = 1.0
    mask_prompt: Annotated[bool, "train on assistant turns and completions only, not on prompts"] = False

    _folder: ClassVar[str] = "output"

    @classmethod
    def _is_path(cls, name: str, value: Any, folder: Path) -> bool:
        return super()._is_path(name, value, folder) and not (name == "tokenizer" and is_bundled(value))

    def _check_effects(self) -> None:
        super()._check_effects()
        refuse_set(self, unread(self.objective), f"objective is {self.objective}")
