"""`macllm constitution`: the whole of Constitutional AI, interrupted in every stage."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.cli import constitution
from macllm.train.config import FinetuneConfig
from macllm.train.constitution import stages

QUESTIONS = ("What is RoPE?", "What is GQA?", "What is LoRA?", "What is MoE?")
GIVEN = ["constitution", "prompts.jsonl", "-p", "principles.toml", "-n", "96", "--restarts", "0", "--json"]
SETTINGS = ["--set", "iters=2", "--set", "batch_size=2", "--set", "save_every=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("principles.toml").write_text('[[principle]]\nname = "short"\ntext = "Be short."\n')
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{question}"}}\n' for question in QUESTIONS))
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes()
        for name in ("revisions.jsonl", "preferences.jsonl", "revised/model.safetensors", "model/model.safetensors")
    }


def interrupted_once(function: Callable[..., Any], key: Callable[..., object], seen: set[object]) -> Callable[..., Any]:
    """`function`, interrupted at its first call with each key; a generator after its first event."""

    def called(*arguments: Any, **named: Any) -> Any:
        if (found := key(*arguments)) not in seen:
            seen.add(found)
            if isinstance(arguments[0], Generator):
                next(arguments[0])
                arguments[0].close()
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return called


@pytest.mark.slow
def test_an_interrupted_constitution_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*GIVEN, *SETTINGS, "-o", "whole"]) == 0
    seen: set[object] = set()
    for module, name, key in (
        (constitution, "followed", lambda work: work.gi_code.co_name),
        (constitution, "narrate", lambda events, folder: folder),
        (stages, "merged", lambda config, output: output),
    ):
        monkeypatch.setattr(module, name, interrupted_once(getattr(module, name), key, seen))
    codes = [cli.main([*GIVEN, *SETTINGS, "-o", "parts"]) for _ in range(7)]
    assert codes == [130] * 6 + [0]
    assert capsys.readouterr().err.count("the same command continues") == 6
    assert len(seen) == 6
    assert files(folder / "parts") == files(folder / "whole")


def test_each_training_has_its_own_settings() -> None:
    sets = ["epochs=1", "dpo.learning_rate=2e-5", "sft.learning_rate=1e-4", "learning_rate=1", "beta=0.2", "lerning=1"]
    assert stages.training_settings(sets, "sft") == ("epochs=1", "learning_rate=1", "lerning=1", "learning_rate=1e-4")
    assert stages.training_settings(sets, "dpo") == (
        "epochs=1", "learning_rate=1", "beta=0.2", "lerning=1", "learning_rate=2e-5"
    )  # fmt: skip
    supervised, preferred = (
        FinetuneConfig.load(sets=stages.training_settings(sets[:5], objective), objective=objective, data="prompts")
        for objective in ("sft", "dpo")
    )
    assert (supervised.learning_rate, preferred.learning_rate, preferred.beta) == (1e-4, 2e-5, 0.2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data=mine.jsonl", "data cannot be set here"),
        ("dpo.model=mine", "model cannot be set here"),
        ("sft.beta=0.2", "beta"),
        ("rlhf.beta=0.2", "rlhf.beta"),
        ("teacher=mine", "teacher"),
        ("beta", "cannot read 'beta'"),
    ],
)
def test_settings_that_no_training_takes_are_refused(
    folder: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*GIVEN, "--set", setting, "-o", "new"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("judge", "message"),
    [("judge.py:missing", "has no function"), ("judge.py", "names no function"), ("none.py:x", "there is no file")],
)
def test_a_wrong_judge_is_refused_before_anything_is_answered(
    folder: Path, judge: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "judge.py").write_text("def first(**texts):\n    return 1\n")
    assert cli.main([*GIVEN, "--judge", judge, "-o", "new"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "new").exists()


def test_preferences_for_a_place_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge.py").write_text(
        "def first(first, second, **texts):\n    return 5 + (len(first) > len(second))\n\n"
        "def longer(first, second, **texts):\n    return len(first) - len(second)\n"
    )
    told = {}
    for name in ("first", "longer"):
        arguments = ["data", "prefer", *GIVEN[1:-3], "--judge", f"judge.py:{name}", "-o", f"{name}.jsonl"]
        assert cli.main(arguments) == 0
        told[name] = "change with the order of the answers" in capsys.readouterr().err
    assert told == {"first": True, "longer": False}


def test_a_folder_of_other_settings_or_with_other_files_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    stages.Stages(folder / "begun", {"model": "another"})
    for name, message in (("mine", "has other files"), ("begun", "was begun with other settings")):
        assert cli.main([*GIVEN, "-o", name]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*GIVEN, "-o", "new", "--temperature", "0"]) == 2
    assert cli.main([*GIVEN, "-o", "new", "--adapter", "mine"]) == 2
    assert not (folder / "new").exists()
