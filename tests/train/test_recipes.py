"""Recipes that come with macllm: they load, are documented, and run."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.errors import UsageError
from macllm.train import finetune, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.config.subjects import subjects
from macllm.train.events import Finished
from macllm.train.recipes import Recipe, find, is_ambiguous, recipes, settings_file
from tests.train.recipes import chat

RECIPES = pytest.mark.parametrize("recipe", recipes(), ids=lambda each: each.name)


@RECIPES
def test_a_recipe_loads_and_says_its_command(recipe: Recipe) -> None:
    config = recipe.config.load(recipe.path, data="rows.jsonl")
    assert config.data == "rows.jsonl"
    assert config != recipe.config(data="rows.jsonl") or recipe.name == "lora-chat"
    assert f"#   macllm {recipe.command} {recipe.name} " in recipe.path.read_text(encoding="utf-8")
    assert recipe.about.endswith(".")
    assert len(recipe.about) <= 90


@RECIPES
def test_the_text_of_a_recipe_documents_every_setting_and_has_the_same_values(recipe: Recipe) -> None:
    text = recipe.text()
    documented = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#")).lower()
    for name, line in recipe.config.documentation().items():
        if name not in ("data", "model", "resume"):
            assert f"{line.lower()}." in documented, name
            assert f"\n{name} = " in text or f"\n# {name} = " in text
    values = tomllib.loads(recipe.path.read_text(encoding="utf-8"))
    assert tomllib.loads(text) == values
    enabled = "".join(f"{line.removeprefix('# ')}\n" for line in text.splitlines() if " = " in line)
    defaults = recipe.config(data="x").as_dict()
    for name, value in tomllib.loads(enabled).items():
        wanted = values.get(name, defaults[name])
        assert value == (False if wanted is None else wanted), name


@RECIPES
def test_a_reason_stays_with_its_setting(recipe: Recipe) -> None:
    text = " ".join(line.lstrip("# ") for line in recipe.text().splitlines())
    for line in recipe.path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") and "  # " in line:
            assert f"Here: {line.split('  # ')[1]}. {line.split(' = ')[0]} = " in text


def test_every_setting_has_a_subject() -> None:
    for kind in (FinetuneConfig, PretrainConfig):
        found = subjects(kind)
        assert sorted(name for names in found.values() for name in names) == sorted(
            f.name for f in dataclasses.fields(kind)
        )
        assert all(found.values())
    assert list(subjects(FinetuneConfig))[:3] == ["Objective", "Model and adapter", "Data"]
    assert "rank" in subjects(FinetuneConfig)["Model and adapter"]
    assert "init_std" in subjects(PretrainConfig)["Model"]


def test_a_recipe_is_found_by_its_name_for_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_file("lora-chat", "finetune") == find("lora-chat").path
    assert settings_file("own.toml", "finetune") == Path("own.toml")
    assert settings_file("a/lora-chat", "finetune") == Path("a/lora-chat")
    with pytest.raises(UsageError, match="no recipe lora-chatt") as error:
        settings_file("lora-chatt", "finetune")
    assert error.value.remedy == "did you mean lora-chat?"
    with pytest.raises(UsageError, match="another command") as error:
        settings_file("pretrain-tiny", "finetune")
    assert error.value.remedy == "macllm train pretrain-tiny"
    Path("lora-chat").mkdir()  # of a run
    assert settings_file("lora-chat", "finetune") == find("lora-chat").path
    assert not is_ambiguous("lora-chat")
    Path("lora-chat").rmdir()
    Path("lora-chat").touch()
    assert is_ambiguous("lora-chat")
    assert settings_file("lora-chat", "finetune") == Path("lora-chat")


def finish(events) -> Finished:
    return [event for event in events if isinstance(event, Finished)][-1]


TEXT = Path(__file__).read_text(encoding="utf-8")
# Options of the tokenizer that the first lines of these recipes make.
TOKENIZERS = {
    "masked-tiny": ("--type", "wordpiece", "--vocab-size", "200"),
    "span-tiny": ("--type", "unigram", "--vocab-size", "200", "--sentinels", "32", "--add-eos"),
    "infill-tiny": ("--type", "unigram", "--vocab-size", "200", "--add-mask", "--add-eos"),
    "text-to-text-tiny": ("--type", "unigram", "--vocab-size", "200", "--add-eos"),
}


@pytest.mark.slow
@RECIPES
def test_a_recipe_trains(recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(chat(f"number {i}?", f"{i * 7 % 10}") for i in range(20)))
    if recipe.name in ("grpo", "ppo"):
        data.write_text("".join(f'{{"prompt": "number {i}?", "answer": "{i}"}}\n' for i in range(20)))
    if recipe.name in ("dpo", "kto", "orpo", "simpo"):
        pairs = [f'{{"prompt": "number {i}?", "chosen": "{i}", "rejected": "{i + 1}"}}\n' for i in range(20)]
        data.write_text("".join(pairs))
    if recipe.name == "text-to-text-tiny":
        data.write_text("".join(f'{{"source": "number {i}?", "target": "{i}"}}\n' for i in range(20)))
    settings: dict[str, Any] = {"data": data, "iters": 2, recipe.config._folder: tmp_path / "o"}
    if recipe.name in TOKENIZERS:
        (tmp_path / "text.txt").write_text(TEXT)
        settings["tokenizer"] = tmp_path / "tokenizer"
        if recipe.name != "text-to-text-tiny":
            settings["data"] = tmp_path / "text.txt"
        options = [*TOKENIZERS[recipe.name], "--output", str(tmp_path / "tokenizer")]
        assert cli.main(["tokenizer", "train", str(tmp_path / "text.txt"), *options]) == 0
    config: TrainConfig = recipe.config.load(recipe.path, **settings)
    module = finetune if isinstance(config, FinetuneConfig) else pretrain
    assert finish(module.events(config)).step == 2


def test_a_model_from_random_weights_takes_the_shape_of_the_recipe_and_maclets_tokenizer(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(chat(f"number {i}?", f"{i}") for i in range(4)))
    recipe = find("pretrain-tiny")
    config = PretrainConfig.load(recipe.path, data=data, iters=1, batch_size=2, output=tmp_path / "run")
    assert finish(pretrain.events(config)).step == 1
    assert (tmp_path / "run/model/tokenizer.model").is_file()
