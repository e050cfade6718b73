"""Runs in a child process: restarted after an abort, and stopped with their parent."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macllm.errors import DataError, EngineCrashedError, MacllmError
from macllm.train.config import FinetuneConfig
from macllm.train.events import Advanced, Finished, Restarted, Step, TrainEvent, Working
from macllm.train.runs import supervisor
from macllm.train.runs.folder import SUPERVISING, TRAINING, Holder, holder
from macllm.train.runs.supervisor import advice, supervised
from macllm.train.snapshot import Snapshots
from tests.train.test_contract import VOCAB, masked_events, small_config
from tests.train.test_kills import results
from tests.train.toy import ToyLM

PARENT = """
import json, signal, sys
from macllm.train.config import FinetuneConfig
from macllm.train.events import Advanced
from macllm.train.runs.supervisor import supervised
from macllm.cli.training import narrate

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
config = FinetuneConfig(**json.loads(sys.argv[1]))
narrate(supervised("tests.train.test_supervisor:slow", config, 3), "")
"""


def aborting(config: FinetuneConfig) -> Generator[TrainEvent]:
    """Train, and kill this process at the first of the moments in a file, which then loses it."""
    moments = Path(config.data) / "moments.json"
    due = json.loads(moments.read_text())
    for number, event in enumerate(masked_events(config, ToyLM(VOCAB, dropout=0.1))):
        if due and number == due[0][0]:
            moments.write_text(json.dumps(due[1:]))
            os.kill(os.getpid(), due[0][1])
            time.sleep(10)
        yield event


def slow(config: FinetuneConfig) -> Generator[TrainEvent]:
    with closing(masked_events(config, ToyLM(VOCAB, dropout=0.1))) as events:
        for event in events:
            yield event
            if isinstance(event, Advanced):
                time.sleep(0.05)


def refusing(config: FinetuneConfig) -> Generator[TrainEvent]:
    yield next(masked_events(config, ToyLM(VOCAB)))
    raise DataError("rows.jsonl:3 is not JSON", cause="it is odd", remedy="mend it")


def straight(config: FinetuneConfig) -> FinetuneConfig:
    """The config of the same run, done in this process."""
    config = replace(config, adapter_path=f"{config.adapter_path}-straight")
    for _ in masked_events(config, ToyLM(VOCAB, dropout=0.1)):
        pass
    return config


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return replace(small_config(tmp_path), iters=10, save_every=3, steps_per_eval=4, steps_per_report=3)


def run(config: FinetuneConfig, moments: list[tuple[int, int]], restarts: int = 3) -> list[TrainEvent]:
    (Path(config.data) / "moments.json").write_text(json.dumps(moments))
    events = []
    for event in supervised("tests.train.test_supervisor:aborting", config, restarts):
        assert holder(Path(config.adapter_path), SUPERVISING)  # between two processes too
        events.append(event)
    return events


def metrics(config: FinetuneConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.adapter_path) / "metrics.jsonl").read_text().splitlines()]


def test_an_aborted_run_goes_on_in_another_process_to_the_same_bytes(config: FinetuneConfig) -> None:
    events = run(config, [(9, signal.SIGKILL)])
    assert results(config) == results(straight(config))
    (restarted,) = (event for event in events if isinstance(event, Restarted))
    assert restarted.step == 3
    assert "killed by SIGKILL" in restarted.cause
    assert not restarted.changed  # the process held a small part of the machine's memory
    assert isinstance(events[-1], Finished)
    assert [line["step"] for line in metrics(config) if line["event"] == "Restarted"] == [3]


@pytest.mark.slow
def test_a_run_aborted_in_several_ways_at_several_moments_ends_with_the_same_bytes(config: FinetuneConfig) -> None:
    moments = [(1, signal.SIGSEGV), (9, signal.SIGABRT), (5, signal.SIGBUS)]
    events = run(config, [(at, int(number)) for at, number in moments])
    assert results(config) == results(straight(config))
    assert len([event for event in events if isinstance(event, Restarted)]) == len(moments)
    noted = [line["step"] for line in metrics(config) if line["event"] == "Restarted"]
    assert noted == [event.step for event in events if isinstance(event, Restarted)]


@pytest.mark.slow
def test_aborts_without_a_new_snapshot_end_the_run_with_advice(config: FinetuneConfig) -> None:
    with pytest.raises(EngineCrashedError, match="aborted, 2 times in a row without a new snapshot") as caught:
        run(config, [(2, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGKILL)], restarts=1)
    assert "--grad-checkpoint" in str(caught.value)
    assert "--batch-size" in str(caught.value)
    assert "out of memory" in str(caught.value)
    run(replace(config, resume=True), [])
    assert results(config) == results(straight(config))


def test_the_advice_after_a_full_memory_is_of_commands_that_resume_the_run(config: FinetuneConfig) -> None:
    for size, count, smaller in ((8, 1, (4, 2)), (6, 2, (3, 4)), (5, 3, (1, 15)), (2, 1, (1, 2))):
        text = advice(replace(config, batch_size=size, grad_accumulation_steps=count), 3)
        first, second = (shlex.split(way) for way in text.split(", or "))
        assert first[-1] == "--grad-checkpoint"
        assert second[-4:] == ["--batch-size", str(smaller[0]), "--grad-accumulation-steps", str(smaller[1])]
        assert {"--resume", config.adapter_path} <= {*first} & {*second}
    least = replace(config, batch_size=1, grad_checkpoint=True)
    assert "runs fork" in advice(least, 3)
    assert "--max-seq-length" in advice(least, 0)


def test_an_error_in_the_child_is_that_of_the_parent_and_is_not_tried_again(config: FinetuneConfig) -> None:
    events = supervised("tests.train.test_supervisor:refusing", config, 3)
    with pytest.raises(DataError, match=r"rows.jsonl:3 is not JSON\ncause: it is odd\ntry: mend it"):
        list(events)


def test_a_child_that_reports_nothing_for_long_is_told_to_be_at_work(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_QUIET_SECONDS", 0.01)
    events = list(supervised("tests.train.test_supervisor:slow", replace(config, iters=2), 3))
    signs = [event.seconds for event in events if isinstance(event, Working)]
    assert signs[:3] == pytest.approx([0.01, 0.02, 0.03])
    assert signs.count(0.01) > 1  # anew after each event
    assert isinstance(events[-1], Finished)


def test_closing_a_run_saves_it(config: FinetuneConfig) -> None:
    (Path(config.data) / "moments.json").write_text("[]")
    with closing(supervised("tests.train.test_supervisor:slow", config, 3)) as events:
        next(event for event in events if isinstance(event, Step))
    assert holder(Path(config.adapter_path)) is None
    stopped = metrics(config)[-1]
    assert stopped["event"] == "Stopped"
    assert (Path(config.adapter_path) / f"snapshots/step-{stopped['step']:08d}").is_dir()


def failing(config: FinetuneConfig) -> Generator[TrainEvent]:
    """Train until closed, on a full disk."""

    def save(*_: object) -> None:
        raise MacllmError("cannot write the snapshot")

    Snapshots.save = save  # type: ignore[method-assign]
    yield from slow(config)


def test_the_error_of_a_save_at_the_end_of_a_stopped_run_is_told(config: FinetuneConfig) -> None:
    events = supervised("tests.train.test_supervisor:failing", replace(config, save_every=0, steps_per_eval=0), 3)
    assert any(isinstance(event, Advanced) and event.work == "training" for event in events)
    with pytest.raises(MacllmError, match="cannot write the snapshot"):
        events.close()


def begun(config: FinetuneConfig, repository: Path) -> subprocess.Popen[str]:
    """A process that supervises a run, after its first report."""
    command = [sys.executable, "-c", PARENT, json.dumps(config.as_dict())]
    process = subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    while "step 3/" not in (line := process.stderr.readline()):
        assert line
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, None])
def test_a_parent_that_is_stopped_or_killed_leaves_no_child_and_a_run_to_resume(
    config: FinetuneConfig, repository: Path, number: int | None
) -> None:
    process, folder = begun(config, repository), Path(config.adapter_path)
    assert holder(folder) == Holder(process.pid, signal.SIGTERM)
    child = holder(folder, TRAINING)
    assert child
    assert child.pid != process.pid
    pids = (process.pid, child.pid)
    for each, state in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "SRD")):  # Ctrl-Z and fg
        os.kill(process.pid, each)
        while not all(Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] in state for pid in pids):
            time.sleep(0.02)
    os.kill(*((child.pid, signal.SIGTERM) if number is None else (process.pid, number)))
    _, said = process.communicate(timeout=60)
    end = time.monotonic() + 20
    while holder(folder) is not None:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert ("stopped; macllm runs resume" in said) == (number != signal.SIGKILL)
    assert (metrics(config)[-1]["event"] == "Stopped") == (number != signal.SIGKILL)
    run(replace(config, resume=True), [])
    assert results(config) == results(straight(config))
