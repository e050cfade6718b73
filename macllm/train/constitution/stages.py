"""The stages of Constitutional AI in one folder: what each reads and writes, and which are done."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from macllm.errors import UsageError
from macllm.files import publish, read_json, write_json
from macllm.train.config import SETTINGS_NAME, FinetuneConfig
from macllm.train.config.objective import unread

_ABOUT = "constitution.json"
_OF_STAGES = ("objective", "data", "model", "adapter_path", "resume")
TrainingObjective = Literal["sft", "dpo"]


def training_settings(sets: Sequence[str], objective: TrainingObjective) -> tuple[str, ...]:
    """The `key=value` of one training: its own, `sft.key=value`, over those of both.

    A key that one objective alone reads is left to that one. Raises UsageError for keys that the stages set.
    """
    own, both = list[str](), list[str]()
    for text in sets:
        stage, _, key = text.partition("=")[0].strip().rpartition(".")
        if key in _OF_STAGES:
            raise UsageError(f"{key} cannot be set here", cause="each stage has its own")
        if stage == objective:
            own.append(text.strip().removeprefix(f"{objective}."))
        elif stage not in get_args(TrainingObjective) and _concerns(key, objective):
            both.append(text)
    return (*both, *own)


def _concerns(key: str, objective: TrainingObjective) -> bool:
    readers = [each for each in get_args(TrainingObjective) if key not in unread(each)]
    return objective in readers or not readers


class Stages:
    """The files of one folder.

    The model's revisions of its answers are in `revisions`; trained on them it is `revised`; its preferences between
    answers are in `preferences`; trained on these it is `result`. `about` is all that these depend on. Raises
    UsageError for a folder with other contents, or of other settings.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.revisions, self.preferences = folder / "revisions.jsonl", folder / "preferences.jsonl"
        self.revised, self.result = folder / "revised", folder / "model"
        _claim(folder, about)

    def supervised(self, config: FinetuneConfig) -> FinetuneConfig:
        """The settings of training on the revisions."""
        return self._training(config, self.revisions, config.model)

    def preferred(self, config: FinetuneConfig) -> FinetuneConfig:
        """The settings of training on the preferences (DPO)."""
        return self._training(config, self.preferences, str(self.revised))

    def _training(self, config: FinetuneConfig, data: Path, model: str) -> FinetuneConfig:
        run = self.folder / f"training-{config.objective}"
        begun = (run / SETTINGS_NAME).is_file()
        return dataclasses.replace(config, data=str(data), model=model, adapter_path=str(run), resume=begun)


def merged(config: FinetuneConfig, output: Path) -> None:
    """Write the model that a finished run has made to the folder `output`, all at once."""
    from macllm import checkpoint, hub
    from macllm.adapter.merge import merge, probes

    draft = output.with_name(f".{output.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    if config.method == "full":
        shutil.copytree(config.result, draft)
    else:
        model, tokenizer = checkpoint.load(config.model, adapter=config.result)
        merge(model, probes(model, tokenizer))
        checkpoint.save(model, tokenizer, draft, checkpoint.stored_types(hub.resolve(config.model)))
    publish(draft, output)


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    path = folder / _ABOUT
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} has other files", remedy="another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
        return
    try:
        stored = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}", cause=str(error), remedy="another folder") from error
    changed = [name for name in about if not isinstance(stored, dict) or stored.get(name) != about[name]]
    if changed:
        raise UsageError(f"{folder} was begun with other settings", cause=", ".join(changed), remedy="another folder")
