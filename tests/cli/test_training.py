"""A training run told line by line."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path

import pytest

from macllm import cli
from macllm.cli.training import narrate
from macllm.train.events import Advanced, Finished, Prepared, Step, TrainEvent


def run(losses: list[float], end: float) -> Generator[TrainEvent]:
    yield Advanced("reading", 0, 4)
    for number, loss in enumerate(losses, 1):
        yield Advanced("training", number, len(losses))
        yield Step(number, loss, 1e-3, 1.0, 100.0, 1_000)
    yield Finished(len(losses), end, 2.0, "folder")


@pytest.mark.parametrize(
    ("losses", "end", "said"),
    [
        ([3.0, 2.9], 2.9, "fell by only 3%: try more --epochs"),
        ([3.0, 3.1], 3.1, "the loss did not fall"),
        ([3.0, 1.0], 1.0, "done in 2 s, loss 1.0000"),
        ([3.0], 3.0, "done in 2 s, loss 3.0000"),
        ([0.0002, 0.0003], 0.0003, "done in 2 s, loss 0.0003"),
        ([0.0, 0.5], 0.5, "the loss did not fall"),
        ([], math.nan, "done in 2 s, no steps left"),
    ],
)
def test_the_end_of_a_run_says_what_came_of_it(
    losses: list[float], end: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrate(run(losses, end), "elsewhere") == "folder"
    told = capsys.readouterr()
    assert said in told.err
    assert ("try more" in told.err) == ("fall" in said or "fell" in said)
    assert told.out == "folder\n"


def test_a_resumed_run_is_not_judged_by_the_loss_of_its_rest(capsys: pytest.CaptureFixture[str]) -> None:
    def resumed() -> Generator[TrainEvent]:
        yield Prepared(4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=2)
        yield from run([1.0, 0.99], 0.99)

    narrate(resumed(), "elsewhere")
    assert "try more" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "--data", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
        (["finetune", "--data", "odd.jsonl"], "odd.jsonl:1 is not JSON"),
        (["finetune", "--data", "rows.jsonl", "--adapter-path", "full"], "full already has a run"),
        (["finetune", "--data", "rows.jsonl", "--valid", "none.jsonl"], "no file none.jsonl"),
        (["train", "--data", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
        (["train", "--data", "rows.jsonl", "--config", "none.json"], "none.json does not exist"),
        (["train", "--data", "rows.jsonl", "--config", "rows.jsonl", "--tokenizer", "none"], "none does not exist"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_before_anybody_waits_for_kernels(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compiled() -> None:
        raise AssertionError("kernels were compiled first")

    monkeypatch.setattr("macllm.cli.finetune.compile_kernels", compiled)
    monkeypatch.setattr("macllm.cli.train.compile_kernels", compiled)
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("odd.jsonl").write_text("odd\n")
    Path("full/snapshots").mkdir(parents=True)
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err
