"""`macllm recipe`, and recipes as an argument of the commands that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm import cli
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.recipes import find, recipes


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "ls"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [each.name for each in recipes()]
    assert cli.main(["recipe", "show", "lora-chat"]) == 0
    assert capsys.readouterr().out == find("lora-chat").text()
    assert cli.main(["recipe", "show", "lora"]) == 2


def test_a_copy_loads_with_the_files_beside_it_and_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["recipe", "cp", "pretrain-tiny", "own/my.toml"]) == 0
    assert capsys.readouterr().out == "own/my.toml\n"
    config = PretrainConfig.load("own/my.toml", data="rows.jsonl")
    assert Path(config.config) == Path("own/pretrain-tiny.json")
    assert Path(config.config).is_file()
    assert config.tokenizer == "maclet"
    Path("own/my.toml").write_text("seed = 3\n")
    assert cli.main(["recipe", "cp", "pretrain-tiny", "own/my.toml"]) == 2
    told = capsys.readouterr().err
    assert "own/my.toml exists" in told
    assert "try: macllm recipe cp pretrain-tiny own/recipe-2/pretrain-tiny.toml" in told
    assert Path("own/my.toml").read_text() == "seed = 3\n"
    assert cli.main(["recipe", "cp", "pretrain-tiny", "own/recipe-2/pretrain-tiny.toml"]) == 0  # as the error says
    Path("own/link.toml").symlink_to("nowhere.toml")
    assert cli.main(["recipe", "cp", "pretrain-tiny", "own/link.toml"]) == 2
    assert "try: macllm recipe cp pretrain-tiny own/recipe-3/pretrain-tiny.toml" in capsys.readouterr().err
    assert cli.main(["recipe", "cp", "pretrain-tiny", "own/other.toml"]) == 2
    assert "own/pretrain-tiny.json exists" in capsys.readouterr().err
    assert cli.main(["recipe", "cp", "lora-chat", "my"]) == 2
    assert cli.main(["recipe", "cp", "lora-chat"]) == 0
    assert FinetuneConfig.load("lora-chat.toml", data="x") == FinetuneConfig.load(find("lora-chat").path, data="x")


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_a_copy_asks_before_it_replaces(answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lora-chat.toml").write_text("old\n")
    monkeypatch.setattr("macllm.cli.recipe.sys.stdin", type("Terminal", (), {"isatty": lambda _: True})())
    asked: list[str] = []

    def confirm(text: str, **_options: object) -> bool:
        asked.append(text)
        if not answer:
            raise cli.click.Abort
        return True

    monkeypatch.setattr("click.confirm", confirm)
    assert cli.main(["recipe", "cp", "lora-chat"]) == (0 if answer else 130)
    assert asked == ["lora-chat.toml exists. Replace it?"]
    assert (Path("lora-chat.toml").read_text() == "old\n") != answer


@pytest.mark.parametrize(
    "arguments",
    [["long-context"], ["--config", "long-context"], ["own.toml"], ["-c", "own.toml"], ["lora.yaml"]],
    ids=str,
)
def test_fine_tuning_takes_a_recipe_by_name_or_file(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[FinetuneConfig] = []

    def stop(config: FinetuneConfig) -> None:
        seen.append(config)
        raise cli.UsageError("enough")

    monkeypatch.setattr("macllm.cli.finetune.check", stop)
    Path("own.toml").write_text("max_seq_length = 8192\n")
    Path("lora.yaml").write_text("max_seq_length: 8192\n")
    assert cli.main(["finetune", *arguments, "--data", "rows.jsonl", "--rank", "3"]) == 2
    assert (seen[0].max_seq_length, seen[0].rank, seen[0].data) == (8192, 3, "rows.jsonl")
    assert ("mlx-lm" in capsys.readouterr().err) == (arguments == ["lora.yaml"])


def test_a_file_with_the_name_of_a_recipe_comes_first_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("lora-chat").write_text("rank = 0\n")
    assert cli.main(["finetune", "lora-chat", "--data", "x"]) == 2
    told = capsys.readouterr().err
    assert "settings are read from the file lora-chat here" in told
    assert "lora-chat: rank cannot be 0" in told


def test_two_files_and_unknown_names_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "a.toml", "--config", "b.toml", "--data", "x"]) == 2
    assert "both name settings" in capsys.readouterr().err
    assert cli.main(["train", "pretrain-tinny", "--data", "x"]) == 2
    assert "did you mean pretrain-tiny?" in capsys.readouterr().err
    assert cli.main(["train", "absent.toml", "--data", "x"]) == 2
    assert "cannot read the config absent.toml" in capsys.readouterr().err
