"""The stages of Constitutional AI in one folder: what each reads and writes, and which are done."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macllm.errors import UsageError
from macllm.files import publish, read_json, write_json
from macllm.train.config import SETTINGS_NAME, FinetuneConfig, FinetuneObjective

_ABOUT = "constitution.json"


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
        return self._training(config, "sft", self.revisions, config.model)

    def preferred(self, config: FinetuneConfig) -> FinetuneConfig:
        """The settings of training on the preferences (DPO)."""
        return self._training(config, "dpo", self.preferences, str(self.revised))

    def _training(self, config: FinetuneConfig, objective: FinetuneObjective, data: Path, model: str) -> FinetuneConfig:
        run = self.folder / f"training-{objective}"
        begun = (run / SETTINGS_NAME).is_file()
        values = {"objective": objective, "data": str(data), "model": model, "adapter_path": str(run), "resume": begun}
        return dataclasses.replace(config, **values)


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
