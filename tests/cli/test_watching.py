"""The display of a run in another process, from what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm import cli
from macllm.cli import watching
from macllm.train.events import Advanced, Prepared, Restarted, RunFailed, Step, TrainEvent
from macllm.train.runs.folder import append, lock

PREPARED = Prepared(8, 64, 32, 0, 0, 0, 0, 0, 0, 0, 10, 10, steps=9, first_step=0)


def step(number: int) -> Step:
    return Step(number, 1.0 / number, 1e-3, 1.0, 100.0, 2048)


def test_progress_is_that_of_reports_and_their_pace_is_known_after_two_that_were_waited_for() -> None:
    pace = watching.ReportPace()
    events = list(watching.advanced([PREPARED, step(3)], pace))
    expected = Advanced("training", 3, 9, loss=1 / 3, learning_rate=1e-3, peak_bytes=2048)
    assert events == [PREPARED, expected, step(3)]
    pace.wait(0.0)
    found = [pace.seconds(number, clock) for number, clock in ((6, 11.0), (9, 17.0), (12, 20.0))]
    assert found == [0.0, 2.0, 1.5]
    assert pace.seconds(3, 30.0) == 0.0  # resumed from an earlier step


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_run_is_watched_from_any_time_with_restarts_and_errors_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    shown: list[list[str]] = []
    more: list[TrainEvent] = [Restarted(3, "out of memory", 1, 3), step(6), RunFailed(6, "the disk is full", "no room")]

    def wait(pace: watching.ReportPace, seconds: float) -> None:
        shown.append(capsys.readouterr().err.splitlines())
        if not more:
            held.__exit__(None, None, None)
        else:
            append(tmp_path, more.pop(0))

    (tmp_path / "run.json").write_text("{}")
    append(tmp_path, PREPARED)
    append(tmp_path, step(3))
    monkeypatch.setattr(watching.ReportPace, "wait", wait)
    monkeypatch.setattr("macllm.cli.run_display.is_live", lambda stream: is_terminal)
    monkeypatch.setattr("macllm.cli.live.REDRAW_SECONDS", 0.0)
    held = lock(tmp_path)
    held.__enter__()
    assert cli.main(["runs", "watch", str(tmp_path)]) == 0
    steps = [any("3/9" in line for line in shown[0]), any("6/9" in line for line in shown[2])]
    assert steps == [True, True]
    assert any("loss 0.3333" in line for line in shown[0])
    assert any("peak 2.0 kB of" in line for line in shown[0]) == is_terminal
    assert "out of memory; restarted from step 3" in "".join(shown[1])
    assert "step 6/9  failed: the disk is full (no room)" in "".join(shown[3])
    assert f"macllm runs resume {tmp_path} continues it" in capsys.readouterr().err
