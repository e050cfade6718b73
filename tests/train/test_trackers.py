"""Reports to wandb and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from macllm import cli
from macllm.cli.training import narrate
from macllm.errors import UsageError
from macllm.train import pretrain, trackers
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.events import Evaluated, Finished, Prepared, Step, TrackerFailed, TrainEvent
from tests.train.recipes import write_recipe


class Wandb(ModuleType):
    """The part of wandb that is used; `fails` is the name of a call that raises."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("wandb")
        self.fails = fails
        self.runs: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = 0

    def call(self, name: str) -> None:
        if name == self.fails:
            raise ConnectionError("no network")

    def init(self, **options: Any) -> Wandb:
        self.call("init")
        self.runs.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, Any]) -> None:
        self.call("log")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1
        self.call("finish")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for variable in ("WANDB_PROJECT", "WANDB_SILENT", "WANDB_CONSOLE"):
        monkeypatch.delenv(variable, raising=False)
    return fake


def events(first_step: int = 0) -> Generator[TrainEvent]:
    yield Prepared(4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=4, first_step=first_step)
    yield Step(first_step + 1, 2.0, 1e-3, 1.5, 100.0, 1_000, {"accuracy": 0.5})
    yield Evaluated(first_step + 1, 1.5, 9, True, {"accuracy": 0.25})
    yield Finished(first_step + 1, 1.5, 2.0, "folder")


def config(*names: str) -> FinetuneConfig:
    return FinetuneConfig(data="rows.jsonl", report_to=names)


def test_wandb_gets_the_settings_and_the_numbers_of_each_report(wandb: Wandb, tmp_path: Path) -> None:
    passed = list(trackers.reported(tmp_path, config("wandb"), events()))
    assert passed == list(events())
    assert wandb.runs[0]["config"]["rank"] == 16
    assert (wandb.runs[0]["project"], wandb.runs[0]["name"]) == ("macllm", tmp_path.name)
    assert wandb.logged == [
        {
            "step": 1,
            "train/loss": 2.0,
            "train/learning_rate": 1e-3,
            "train/grad_norm": 1.5,
            "train/tokens_per_second": 100.0,
            "train/peak_bytes": 1_000,
            "train/accuracy": 0.5,
        },
        {"step": 1, "valid/loss": 1.5, "valid/accuracy": 0.25},
    ]
    assert wandb.finished == 1


def test_a_resumed_run_goes_on_with_the_same_run_of_wandb(wandb: Wandb, tmp_path: Path) -> None:
    for first in (0, 1):
        list(trackers.reported(tmp_path, config("wandb"), events(first)))
    assert len({run["id"] for run in wandb.runs}) == 1
    assert {run["resume"] for run in wandb.runs} == {"allow"}
    other = tmp_path / "other"
    other.mkdir()
    list(trackers.reported(other, config("wandb"), events()))
    assert len({run["id"] for run in wandb.runs}) == 2


@pytest.mark.parametrize(("call", "at"), [("init", 1), ("log", 2), ("finish", None)])
def test_an_error_of_a_tracker_is_told_once_and_the_run_goes_on(
    call: str, at: int | None, wandb: Wandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fails = call
    passed = list(trackers.reported(tmp_path, config("wandb"), events()))
    failed = [number for number, event in enumerate(passed) if isinstance(event, TrackerFailed)]
    assert failed == ([] if at is None else [at])
    assert [event for event in passed if not isinstance(event, TrackerFailed)] == list(events())
    narrate(trackers.reported(tmp_path, config("wandb"), events()), "folder")
    told = "reports to wandb have ended, the run goes on: ConnectionError: no network"
    assert capsys.readouterr().err.count(told) == len(failed)


def test_nothing_is_reported_unless_asked_for(wandb: Wandb, tmp_path: Path) -> None:
    for names in ((), ("none",)):
        assert list(trackers.reported(tmp_path, config(*names), events())) == list(events())
    assert wandb.runs == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tracker_is_an_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    assert cli.main(["finetune", "--data", "rows.jsonl", "--report-to", "tensorboard"]) == 2
    assert "try: pip install tensorboard, or --report-to none" in capsys.readouterr().err
    with pytest.raises(UsageError, match="report_to cannot be 'wandbb'"):
        config("wandbb")


def test_the_events_of_a_run_are_those_of_a_run_without_trackers(wandb: Wandb, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    folders = (tmp_path / "with", tmp_path / "without")
    for folder, names in zip(folders, (("wandb",), ()), strict=True):
        list(pretrain.events(PretrainConfig.load(tmp_path / "recipe.toml", output=folder, iters=2, report_to=names)))
    one, other = ((folder / "model/model.safetensors").read_bytes() for folder in folders)
    assert one == other
    assert [values["step"] for values in wandb.logged] == [0, 2, 2]


class Message:
    """A message of protobuf, as its keywords."""

    START = 1

    def __init__(self, **fields: Any) -> None:
        self.fields = fields


def test_tensorboard_gets_event_files_in_the_folder_that_hide_points_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Message] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_event(self, event: Message) -> None:
            written.append(event)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    names = ("Event", "SessionLog", "Summary", "EventFileWriter")
    proto = ModuleType("tensorboard")
    for name in names:
        setattr(proto, name, Message)
    proto.Summary = type("Summary", (Message,), {"Value": Message})  # type: ignore[attr-defined]
    proto.EventFileWriter = Writer  # type: ignore[attr-defined]
    for module in ("compat.proto.event_pb2", "compat.proto.summary_pb2", "summary.writer.event_file_writer"):
        monkeypatch.setitem(sys.modules, f"tensorboard.{module}", proto)
    list(trackers.reported(tmp_path, config("tensorboard"), events(first_step=3)))
    assert [event.fields["step"] for event in written] == [4, 4, 4]
    assert "session_log" in written[0].fields
    tags = [value.fields["tag"] for value in written[2].fields["summary"].fields["value"]]
    assert tags == ["valid/loss", "valid/accuracy"]
    written.clear()
    list(trackers.reported(tmp_path, config("tensorboard"), events()))  # restarted before its first snapshot
    assert [event.fields["step"] for event in written] == [0, 1, 1]
    assert "session_log" in written[0].fields


def test_a_folder_that_wandb_left_is_no_installed_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()
    with pytest.raises(UsageError, match="wandb is not installed"):
        trackers.check(config("wandb"))
