"""`macllm constitution`: the whole of Constitutional AI, interrupted in every stage."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.cli import constitution
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
def test_an_interrupted_constitution_goes_on_to_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(seen) == 6
    assert files(folder / "parts") == files(folder / "whole")


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
