"""The two lines of a training run on a terminal."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from functools import partial

import pytest

from macllm.cli.dashboard import Curve, Dashboard, Pace
from macllm.cli.live import Line
from macllm.cli.output import Progress
from macllm.cli.run_display import Log
from macllm.cli.training import narrate
from macllm.train.events import (
    Advanced,
    Continued,
    Evaluated,
    Finished,
    Paused,
    Prepared,
    Restarted,
    Saved,
    Step,
    TrainEvent,
)
from tests.cli.test_live import Screen


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def prepared(steps: int, every: int = 0, sampled: int = 0) -> Prepared:
    return Prepared(
        4, 9, 9, *[0] * 7, parameters=9, trained_parameters=9, steps=steps, first_step=0, sampled_rows=sampled,
        steps_per_eval=every,
    )  # fmt: skip


def step(done: int, total: int, loss: float = 2.0, seconds: float = 1.0) -> Advanced:
    return Advanced("training", done, total, loss, 1.8e-4, 1204, seconds, 1_200_000_000, 1_900_000_000)


def text(lines: list[Line]) -> list[str]:
    return ["".join(part for part, _ in line) for line in lines]


def dashboard(*events: TrainEvent, clock: Clock | None = None, blocks: bool = True) -> Dashboard:
    board = Dashboard(24_000_000_000, blocks, clock or Clock())
    for event in events:
        board.take(event)
    return board


def test_two_lines_tell_progress_time_loss_speed_and_memory() -> None:
    board = dashboard(prepared(300), *(step(n, 300, 4.0 - n / 100) for n in range(1, 129)))
    assert text(board.lines(110)) == [
        "training " + "━" * 17 + "─" * 23 + "  128/300  42 %  2 min 52 s left",
        "loss 2.7600  ██▇▇▇▆▆▆▆▅▅▅▄▄▄▃▃▃▃▂▂▂▁▁  1.2k tokens/s  1.2 GB, peak 1.9 GB of 24.0 GB  lr 1.8e-04",
    ]

    board.take(Evaluated(128, 2.5, 9, True))
    assert text(board.lines(80))[1] == "loss 2.7600  █▇▇▆▆▅▅▄▄▃▃▂▂▁  valid 2.5000  1.2k tokens/s  1.2/1.9 GB of 24.0 GB"
    assert text(board.lines(60))[1] == "loss 2.7600  █▇▆▅▄▃▂▁  1.2k tokens/s  1.2/1.9 GB of 24.0 GB"
    assert text(board.lines(40))[1] == "loss 2.7600  █▇▇▆▅▅▄▃▂▂▁  1.2k tokens/s"


@pytest.mark.parametrize("width", [40, 41, 60, 79, 80, 81, 120, 300, 20, 12, 3])
@pytest.mark.parametrize("blocks", [True, False])
def test_lines_are_shorter_than_the_terminal_and_keep_what_counts(width: int, blocks: bool) -> None:
    events = [prepared(123456, 10, 8), *(step(n, 123456) for n in range(1, 60)), Evaluated(60, 2.5, 9, True)]
    board = dashboard(*events, blocks=blocks)
    board.take(Advanced("evaluating", 3, 999))
    lines = text(board.lines(width))
    if width >= 12:
        assert all(len(line) < width for line in lines), lines
        assert "59/123456" in lines[0]
    if width >= 40:
        assert "loss 2.0000" in lines[1]
    assert all(ord(c) < 128 for line in lines for c in line) or blocks


def test_time_left_counts_the_evaluations_to_come_and_ticks_down() -> None:
    clock = Clock()
    board = dashboard(prepared(30, every=10, sampled=4), Advanced("evaluating", 0, 4), clock=clock)
    clock.now = 5.0
    board.take(Evaluated(0, 3.0, 9, True))
    for number in range(1, 6):
        board.take(step(number, 30, seconds=2.0))
    assert "1 min 05 s left" in text(board.lines(90))[0]  # 25 steps and three evaluations of 5 s
    clock.now = 9.0
    assert "1 min 01 s left" in text(board.lines(90))[0]
    for number in range(6, 31):
        board.take(step(number, 30, seconds=2.0))
    assert "5 s left" in text(board.lines(90))[0]  # of the last evaluation
    board.take(Evaluated(30, 3.0, 9, True))
    assert "saving " in text(board.lines(90))[0]
    assert " 0 s left" in text(board.lines(90))[0]


def test_time_left_counts_an_evaluation_that_runs_and_is_known_again_after_a_resume() -> None:
    clock = Clock()
    board = dashboard(prepared(30, every=10, sampled=4), Advanced("evaluating", 0, 4), clock=clock)
    clock.now = 5.0
    board.take(Evaluated(0, 3.0, 9, True))
    for number in range(1, 11):
        board.take(step(number, 30))
    board.take(Advanced("evaluating", 0, 4))
    clock.now = 6.0
    assert "34 s left" in text(board.lines(90))[0]  # 20 steps and three evaluations of 5 s, of which one second is over
    clock.now = 10.0
    board.take(Evaluated(10, 3.0, 9, True))
    assert "30 s left" in text(board.lines(90))[0]

    resumed = dashboard(replace(prepared(30), first_step=20), clock=clock)
    assert text(resumed.lines(90)) == ["training " + "━" * 26 + "─" * 14 + "  20/30  66 %"]
    resumed.take(step(21, 30, seconds=60.0))  # compiles
    resumed.take(step(22, 30))
    assert "8 s left" in text(resumed.lines(90))[0]


def test_something_is_told_while_no_work_counts() -> None:
    board = dashboard(Advanced("encoding", 4, 4), prepared(30))
    assert text(board.lines(60))[0].startswith("training ─")  # the first step compiles
    board.take(step(1, 30))
    board.take(Restarted(0, "killed", 1, 3))
    assert text(board.lines(60))[0] == "restarting"
    board.take(Advanced("reading", 1, 4))
    assert "reading " in text(board.lines(60))[0]
    assert "1/4" in text(board.lines(60))[0]
    board.take(prepared(30))
    assert "0/30" in text(board.lines(60))[0]
    board.take(step(2, 30))
    board.take(Paused(2, "on battery power"))
    assert text(board.lines(60))[0].startswith("paused ")
    assert "left" not in text(board.lines(60))[0]
    board.take(Continued(2, 9.0))
    assert text(board.lines(60))[0].startswith("training ")
    board.stopping = True
    assert text(board.lines(60))[0].startswith("stopping after this step; Ctrl-C again: at once")
    assert text(board.lines(60))[1].startswith("loss ")


def test_one_long_step_does_not_spoil_the_time_left() -> None:
    pace = Pace()
    for seconds in (1.0, 1.0, 1.0, 500.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        pace.step(seconds)
    assert pace.left(100, 0) == pytest.approx(120.0)


def test_the_curve_keeps_the_shape_of_a_long_run() -> None:
    curve = Curve()
    for number in range(100_000):
        curve.add(5.0 * math.exp(-number / 30_000))
    assert len(curve.points) < 512
    assert curve.blocks(8) == "█▅▄▃▂▂▁▁"
    assert curve.loss == pytest.approx(5.0 * math.exp(-10 / 3), rel=1e-3)
    assert Curve().blocks(8) == ""


def test_before_the_first_step_the_line_is_that_of_the_work() -> None:
    clock = Clock()
    board = dashboard(Advanced("reading", 0, 200), clock=clock)
    clock.now = 4.0
    board.take(Advanced("reading", 50, 200))
    (line,) = text(board.lines(60))
    assert line.startswith("reading ")
    assert line.endswith("50/200  25 %  12 s left")
    assert dashboard().lines(60) == []


def test_evaluations_and_saves_are_told_within_the_lines() -> None:
    board = dashboard(prepared(30, 10, 4), step(10, 30), Advanced("evaluating", 2, 4))
    first, second = text(board.lines(100))
    assert first.startswith("evaluating ")
    assert "10/30" in first
    assert second.startswith("batch 2/4  loss")
    board.take(Evaluated(10, 2.25, 9, True))
    board.take(Advanced("saving", 0, 1))
    first, second = text(board.lines(100))
    assert first.startswith("saving ")
    assert "validation 2.2500" in second
    board.take(Saved(10, "x"))
    assert text(board.lines(100))[0].startswith("training ")


def test_memory_near_the_limit_is_marked() -> None:
    lines = dashboard(step(1, 2)).lines(120)
    assert [code for part, code in lines[1] if "peak" in part] == [""]
    full = Dashboard(2_000_000_000, clock=Clock())
    full.take(step(1, 2))
    assert [code for part, code in full.lines(120)[1] if "peak" in part] == ["33"]


def test_on_a_terminal_a_run_leaves_its_evaluations_and_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(100)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: type("Size", (), {"columns": 100}))

    def events():
        yield Advanced("reading", 0, 4)
        yield prepared(4, 2, 4)
        for number in range(1, 5):
            yield step(number, 4, 5.0 - number)
            yield Step(number, 5.0 - number, 1e-3, 1.0, 100.0, 1_000)
            if number % 2 == 0:
                yield Evaluated(number, 1.5, 9, number == 2)
            yield Advanced("saving", 0, 1)
            yield Saved(number, "folder/snapshots")
        yield Finished(4, 1.5, 2.0, "folder")

    assert narrate(events(), "elsewhere") == "folder"
    assert capsys.readouterr().out == "folder\n"
    assert screen.lines == [
        "4 examples, 9 of 9 tokens supervised",
        "9 of 9 parameters trainable (100.00%), 4 steps",
        "step 2/4  validation loss 1.5000  (best)",
        "step 4/4  validation loss 1.5000",
        "step 4/4  loss 1.0000  lr 1.00e-03  grad 1  100 tokens/s  1.0 kB  █▆▃▁",
        "done in 2 s, loss 1.5000",
        "",
    ]


def test_an_objectives_first_two_metrics_are_shown() -> None:
    metrics = {"accuracy": 0.8125, "margin": 1.25, "chosen_reward": 0.5}
    board = Dashboard(2_000_000_000, clock=Clock())
    board.take(step(1, 2))
    board.take(Step(1, 0.5, 1e-3, 1.0, 100.0, 1_000, metrics))
    assert "accuracy 0.812  margin 1.25" in "".join(part for part, _ in board.lines(120)[1])
    assert "reward" not in "".join(part for part, _ in board.lines(120)[1])


def test_json_on_a_terminal_is_not_torn_by_the_area(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(200)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    def events():
        yield prepared(2)
        for number in (1, 2):
            yield step(number, 2)
            yield Evaluated(number, 1.5, 9, False)
        yield Finished(2, 1.5, 2.0, "folder")

    narrate(events(), "elsewhere", as_json=True)
    found = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert found == ["Prepared", "Evaluated", "Evaluated", "Finished"]
    assert "\033" not in "".join(screen.writes)


def test_an_interruption_is_told_before_the_last_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Log, "stop", lambda _: told.append("stopping"))

    def events():
        try:
            yield prepared(2)
            signal.raise_signal(signal.SIGINT)
        finally:
            told.append("saved")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        narrate(events(), "elsewhere")
    assert told == ["stopping", "saved"]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_rate_in_a_log_counts_the_steps_of_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("training", "steps", clock=clock, before=500)
    clock.now = 2.0
    progress.update(504, 1000)
    assert "504 steps of 1000 steps, 2 steps/s, 4 min 08 s left" in capsys.readouterr().err


def test_the_time_left_in_a_log_is_that_of_the_steps_between_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("macllm.cli.run_display.Progress", partial(Progress, clock=clock))
    log = Log()
    for done in (21, 22):  # each after a step of 20 s
        clock.now += 20.0
        log.show(Advanced("training", done, 100))
    assert "22 steps of 100 steps, 26 min 00 s left" in capsys.readouterr().err


def test_json_puts_every_event_but_progress_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def events():
        yield Advanced("reading", 0, 4)
        yield Step(1, math.nan, 1e-3, 1.0, 100.0, 1_000)
        yield Finished(1, 1.5, 2.0, "folder")

    narrate(events(), "elsewhere", as_json=True)
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["event"], first["step"], first["loss"]) == ("Step", 1, None)
    assert (last["event"], last["path"]) == ("Finished", "folder")
