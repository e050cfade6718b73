"""Notes of a run reach its user once, wherever it trains."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator
from pathlib import Path

import pytest

from macllm.cli import training
from macllm.errors import DataError
from macllm.train import pretrain
from macllm.train.config import PretrainConfig
from macllm.train.events import Prepared, TrainEvent
from macllm.train.runs.history import events_of
from tests.train.recipes import write_recipe

NOTE = "no loss of load balance is added"


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    write_recipe(tmp_path, output_router_logits=True, router_aux_loss_coef=0.01)
    return PretrainConfig.load(tmp_path / "recipe.toml", output=tmp_path / "run", iters=1)


def unhandled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody handle the log, as in most programs.

    Pytest sets up handlers for each phase of a test, so that a fixture cannot.
    """
    monkeypatch.setattr(logging.root, "handlers", [])


@pytest.mark.parametrize("restarts", [0, 3])
def test_a_run_says_its_notes_once_and_keeps_them(
    restarts: int, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unhandled(monkeypatch)
    training.narrate(training.events(config, restarts), config.output, as_json=True)
    printed = capsys.readouterr()
    assert printed.err.count(NOTE) == 1
    assert printed.err.index(NOTE) < printed.err.index("tokens supervised")
    (prepared,) = (event for event in events_of(Path(config.output)) if isinstance(event, Prepared))
    (told,) = (line for line in map(json.loads, printed.out.splitlines()) if line["event"] == "Prepared")
    assert list(prepared.notes) == told["notes"]
    assert [NOTE in note for note in prepared.notes] == [True]


def test_the_notes_of_a_run_from_python_are_in_the_log(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unhandled(monkeypatch)
    handlers = list(logging.getLogger("macllm").handlers)
    pretrain.train(config)
    assert capsys.readouterr().err.count(NOTE) == 1
    assert logging.getLogger("macllm").handlers == handlers


def test_notes_before_an_error_are_said(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def events(_config: PretrainConfig) -> Generator[TrainEvent]:
        logging.getLogger("macllm.families").warning(NOTE)
        raise DataError("no rows")
        yield

    unhandled(monkeypatch)
    monkeypatch.setattr(pretrain, "events", events)
    with pytest.raises(DataError):
        training.narrate(training.events(config, 0), config.output)
    assert capsys.readouterr().err.count(NOTE) == 1


def test_a_restart_repeats_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    def events() -> Generator[TrainEvent]:
        for step, notes in ((0, ["one"]), (2, ["one", "an\nother"])):
            yield Prepared(4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=step, notes=notes)

    training.narrate(events(), "folder")
    said = capsys.readouterr().err.splitlines()
    assert [said.count("one"), said.count("an other")] == [1, 1]
