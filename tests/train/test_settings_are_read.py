"""A setting that is accepted is used: every field of a config is read by a run of its command.

Reads that only store, check, copy or compare a config do not count.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macllm.train import finetune, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.config.data import INPUTS
from tests.train.recipes import write_recipe, write_texts

# Settings with which the runs are made, each after the other. A field that is read only together with another one
# needs a run here.
RUNS: list[dict[str, Any]] = [{}, {"schedule": "wsd", "steps_per_eval": 1}, {"optimizer": "muon"}]
GENERATING = {"data": "prompts.jsonl", "max_completion_length": 4, "iters": 1, "epochs": 0}
FINETUNE_RUNS: list[dict[str, Any]] = [
    *RUNS,
    {"objective": "simpo", "data": "pairs.jsonl"},
    {"objective": "dpo", "data": "pairs.jsonl"},
    {"objective": "kto", "data": "pairs.jsonl"},
    {"objective": "reward", "data": "pairs.jsonl"},
    {
        "objective": "grpo",
        "rewards": ("exact_match", "judge"),
        "judge": "{completion}?",
        "num_generations": 2,
        **GENERATING,
    },
    {"objective": "ppo", "rewards": ("exact_match",), **GENERATING},
]
FINETUNE_TEXT_RUNS: list[dict[str, Any]] = [{"objective": "seq2seq", "data": "words.jsonl", "model": "run/model"}]
_OF_T5 = {"config": "t5.json", "tokenizer": "."}
TEXT_RUNS: list[dict[str, Any]] = [
    {"objective": "infill", "data": "texts.jsonl", **_OF_T5},
    {"objective": "seq2seq", "data": "words.jsonl", **_OF_T5},
]
_CONFIG_CODE = (str(Path(sys.modules[TrainConfig.__module__].__file__ or "").parent), dataclasses.__file__, "<string>")
_NO_USE = {"__post_init__", "__init__", "__eq__", "__repr__", "_asdict_inner", "asdict", "replace", "_replace"} | {
    "as_dict", "reproducibility_fields", "dated", "fitted", "_check_effects", "_ranges"
}  # fmt: skip


def recording(kind: type[TrainConfig]) -> tuple[type[TrainConfig], set[str]]:
    """A subclass of `kind`, and the names of its fields that were read for use so far."""
    read: set[str] = set()
    names = {f.name for f in dataclasses.fields(kind)}

    def recorded(self: TrainConfig, name: str) -> Any:
        if name in names and _is_use():
            read.add(name)
        return object.__getattribute__(self, name)

    return type(kind)(kind.__name__, (kind,), {"__getattribute__": recorded}), read


def _is_use() -> bool:
    """True unless the value only goes through the code of configs."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith((*_CONFIG_CODE, __file__)):
        if frame.f_code.co_name in _NO_USE:
            return False
        if frame.f_code.co_filename == __file__ and frame.f_code.co_name != "recorded":
            return True
        frame = frame.f_back
    return True


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def base(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "run"
    return pretrain.train(PretrainConfig.load(recipe / "recipe.toml", output=out, iters=1)) / "model"


def unread(
    kind: type[TrainConfig], module: Any, folder: Path, runs: list[dict[str, Any]], **settings: Any
) -> Iterator[str]:
    config, read = recording(kind)
    for number, changes in enumerate(runs):
        out = {kind._folder: folder / str(number)}
        for _ in module.events(config.load(**{**settings, **changes, **out})):
            pass
    yield from (f.name for f in dataclasses.fields(kind) if f.name not in read)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    of_t5 = {"config": folder / "t5.json", "tokenizer": folder, "objective": "seq2seq", "data": folder / "words.jsonl"}
    pretrain.train(PretrainConfig.load(**of_t5, output=folder / "run", iters=1))
    return folder


def test_every_setting_of_finetuning_is_read_by_a_run(recipe: Path, base: Path, texts: Path, tmp_path: Path) -> None:
    settings = {"data": recipe, "model": base, "epochs": 0.5, "batch_size": 8, "rank": 2, "max_seq_length": 32}
    distils = {"objective": "distil", "teacher": base, "divergence": "jsd", "teacher_top": 3, "teacher_first": True}
    longer = {"method": "full", "rank": 16, "context_length": 4096, "rope_scaling": "yarn", "rope_theta": 1e5}
    runs = [*_of_folder(FINETUNE_RUNS, recipe), distils, longer, *_of_folder(FINETUNE_TEXT_RUNS, texts)]
    assert list(unread(FinetuneConfig, finetune, tmp_path, runs, **settings)) == []


def test_every_setting_of_training_is_read_by_a_run(recipe: Path, texts: Path, tmp_path: Path) -> None:
    settings = {"data": recipe, "config": recipe / "config.json", "tokenizer": recipe, "batch_size": 8, "epochs": 0.5}
    runs = [*RUNS, *_of_folder(TEXT_RUNS, texts)]
    assert list(unread(PretrainConfig, pretrain, tmp_path, runs, **settings, max_seq_length=32)) == []


def _of_folder(runs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The runs with paths in the folder."""
    return [{name: folder / value if name in INPUTS else value for name, value in run.items()} for run in runs]


def test_a_setting_that_no_run_reads_is_found() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PretrainConfig):
        unused: int = 0

    config, read = recording(Config)
    one = config(data="rows.jsonl", unused=3)
    one.as_dict()
    one.reproducibility_fields()
    dataclasses.replace(one, unused=4).dated()
    assert one == one
    assert read == set()
    assert one.folder == "run"
    assert one.columns.chat == "messages"
    assert one.batch_size == 4
    assert read == {"output", "chat_feature", "prompt_feature", "completion_feature", "text_feature", "batch_size"}
