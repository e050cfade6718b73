"""Narration of training runs, and errors before them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Generator
from pathlib import Path

import pytest

from macllm import cli
from macllm.cli import finetune
from macllm.cli.training import narrate
from macllm.train.config import FinetuneConfig
from macllm.train.events import Advanced, Counts, Evaluated, Finished, Paused, Prepared, Step, TrainEvent, Working


def run(losses: list[float], end: float) -> Generator[TrainEvent]:
    yield Advanced("reading", 0, 4)
    for number, loss in enumerate(losses, 1):
        yield Advanced("training", number, len(losses))
        yield Step(number, loss, 1e-3, 1.0, 100.0, 1_000)
    yield Finished(len(losses), end, 2.0, "folder")


@pytest.mark.parametrize(
    ("losses", "end", "message"),
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
def test_the_end_of_a_run_reports_the_loss_and_advice(
    losses: list[float], end: float, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrate(run(losses, end), "elsewhere") == "folder"
    printed = capsys.readouterr()
    assert message in printed.err
    assert ("try more" in printed.err) == ("fall" in message or "fell" in message)
    assert printed.out == "folder\n"


def test_the_command_to_try_a_result_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("check", "fetch", "compile_kernels", "events"):
        monkeypatch.setattr(f"macllm.cli.finetune.{name}", lambda *_: None)
    monkeypatch.setattr("macllm.cli.finetune.narrate", lambda *_, **__: "it's mine/a b")
    finetune.start(FinetuneConfig(data="x", model="b c"))
    words = shlex.split(capsys.readouterr().err)
    assert words == ["try", "it:", "macllm", "chat", "--model", "b c", "--adapter", "it's mine/a b"]


def test_reports_and_evaluations_have_the_objectives_first_two_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    def preferences() -> Generator[TrainEvent]:
        yield Step(1, 0.5, 1e-3, 1.0, 100.0, 1_000, {"accuracy": 0.75, "margin": 1.25, "chosen_reward": 0.1})
        yield Evaluated(1, 0.4, 9, True, {"accuracy": 1.0, "margin": 2.0, "chosen_reward": 0.1})
        yield Finished(1, 0.4, 2.0, "folder")

    narrate(preferences(), "elsewhere")
    said = capsys.readouterr().err
    assert "loss 0.5000  accuracy 0.75  margin 1.25  lr 1.00e-03" in said
    assert "validation loss 0.4000  accuracy 1  margin 2  (best)" in said
    assert "reward" not in said


def test_a_resumed_run_gets_no_advice(capsys: pytest.CaptureFixture[str]) -> None:
    def resumed() -> Generator[TrainEvent]:
        yield Prepared(4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=2)
        yield from run([1.0, 0.99], 0.99)

    narrate(resumed(), "elsewhere")
    assert "try more" not in capsys.readouterr().err


def test_a_step_that_takes_minutes_gets_a_line_each_and_a_pause_none(capsys: pytest.CaptureFixture[str]) -> None:
    def slow() -> Generator[TrainEvent]:
        yield Working(60.0)  # the model is loaded
        yield Advanced("training", 2, 4)
        yield Working(60.0)
        yield Working(120.0)
        yield Paused(2, "on battery power")
        yield Working(60.0)

    narrate(slow(), "elsewhere")
    said = [line for line in capsys.readouterr().err.splitlines() if "so far" in line]
    assert said == [f"training 2 of 4 steps, the next takes {text} so far" for text in ("1 min 00 s", "2 min 00 s")]


def test_a_run_tells_how_many_rows_have_tools_that_it_ignores(capsys: pytest.CaptureFixture[str]) -> None:
    def begun() -> Generator[TrainEvent]:
        yield Prepared(
            4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=0, unused_column_rows=3,
            valid=Counts(rows=2, unused_column_rows=2),
        )  # fmt: skip

    narrate(begun(), "elsewhere")
    said = capsys.readouterr().err
    assert "  3 rows with tools or variables for a template, which are ignored" in said
    assert "  2 validation rows with tools or variables for a template, which are ignored" in said


def test_a_packed_run_tells_how_many_examples_share_a_row_and_how_full_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def packed() -> Generator[TrainEvent]:
        yield Prepared(
            30, 900, 400, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=0, bins=10, bin_tokens=100,
            binned=29,
        )  # fmt: skip
        yield from run([1.0, 0.5], 0.5)

    narrate(packed(), "elsewhere")
    assert "packed into 10 rows of 100 tokens: 2.9 in each, 90% full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "unended", "said"),
    [
        ({"chat": 4}, 0, ""),
        ({"chat": 4}, 4, "no end of an answer is learned: the model will not learn to stop"),
        ({"chat": 4}, 1, "1 rows where no end of an answer is learned"),
        ({"chat": 3, "text": 1}, 0, "rows of several kinds: 3 chat, 1 text"),
    ],
)
def test_rows_of_several_kinds_and_answers_without_an_end_are_told(
    kinds: dict[str, int], unended: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def started() -> Generator[TrainEvent]:
        yield Prepared(
            4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=0, kinds=kinds,
            unended_rows=unended,
        )  # fmt: skip
        yield from run([1.0, 0.5], 0.5)

    narrate(started(), "elsewhere")
    printed = capsys.readouterr().err
    assert said in printed
    assert ("kinds" in printed, "no end" in printed) == ("kinds" in said, "no end" in said)


@pytest.mark.parametrize(
    ("valid_rows", "sampled", "counts", "messages"),
    [
        (16, 8, Counts(rows=16), ["16 validation examples, 8 of them in each evaluation"]),
        (
            16,
            16,
            Counts(rows=16, shared_rows=3),
            ["3 validation rows among the training rows"],
        ),
        (
            2,
            2,
            Counts(rows=3, dropped_rows=1, truncated_rows=2),
            ["1 validation rows dropped", "2 validation rows"],
        ),
        (0, 0, Counts(rows=3, unsupervised_rows=3), ["no validation row is left", "the last weights are exported"]),
        (3, 0, Counts(rows=3), ["val_batches is 0", "the last weights are exported"]),
    ],
)
def test_validation_rows_are_reported(
    valid_rows: int, sampled: int, counts: Counts, messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def events() -> Generator[TrainEvent]:
        yield Prepared(4, 9, 9, *[0] * 6, valid_rows, 9, 9, steps=4, first_step=0, sampled_rows=sampled, valid=counts)
        yield from run([1.0], 1.0)

    narrate(events(), "elsewhere")
    printed = capsys.readouterr().err
    assert all(message in printed for message in messages)
    assert ("each evaluation" in printed) == (0 < sampled < valid_rows)
    assert ("are exported" in printed) == (sampled == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--data", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
        (["finetune", "--data", "odd.jsonl"], "odd.jsonl:1 is not JSON"),
        (["finetune", "--data", "rows.jsonl", "--adapter-path", "full"], "full already has a run"),
        (["finetune", "--data", "rows.jsonl", "--valid", "none.jsonl"], "no file none.jsonl"),
        (["finetune", "--data", "both", "--valid-fraction", "0.5"], "valid_fraction has no effect"),
        (["train", "--data", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
        (["train", "--data", "rows.jsonl", "--config", "none.json"], "none.json does not exist"),
        (["train", "--data", "rows.jsonl", "--config", "rows.jsonl", "--tokenizer", "none"], "none does not exist"),
    ],
)
def test_unusable_inputs_and_outputs_are_errors_before_kernels_are_compiled(
    arguments: list[str],
    message: str,
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
    Path("both").mkdir()
    for name in ("train", "valid"):
        Path(f"both/{name}.jsonl").write_text('{"text": "a"}\n')
    Path("full/snapshots/step-00000001").mkdir(parents=True)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
