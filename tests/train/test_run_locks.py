"""Locks of a run's folder: held from the load of the model to the end, with a way to stop."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from macllm import cli
from macllm.errors import UsageError
from macllm.train import finetune
from macllm.train.config import FinetuneConfig
from macllm.train.events import Finished, Prepared
from macllm.train.runs import folder as locks
from macllm.train.runs.folder import SUPERVISING, TRAINING, Holder, holder, lock
from macllm.train.snapshot import Snapshots
from tests.train.test_contract import VOCAB, masked_events, small_config
from tests.train.test_supervisor import metrics
from tests.train.toy import ToyLM


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)


def test_a_folder_that_is_supervised_is_held_also_between_two_processes_that_train(tmp_path: Path) -> None:
    with lock(tmp_path, SUPERVISING):
        assert holder(tmp_path) == Holder(os.getpid(), signal.SIGINT)
        for name in (SUPERVISING, TRAINING):
            with pytest.raises(UsageError, match=f"another process is training.*\n.*process {os.getpid()} holds"):
                lock(tmp_path, name).__enter__()
    with lock(tmp_path), pytest.raises(UsageError, match="another process is training"):
        lock(tmp_path).__enter__()


def test_a_run_holds_its_folder_while_its_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = small_config(tmp_path), []

    def load(name: str) -> None:
        seen.append(holder(tmp_path / "run"))
        raise UsageError("no model")

    monkeypatch.setattr(finetune.checkpoint, "load", load)
    with pytest.raises(UsageError, match="no model"):
        list(finetune.events(config))
    assert seen == [Holder(os.getpid(), signal.SIGINT)]
    assert not (tmp_path / "run").exists()  # made for a run that never began


def test_a_folder_in_which_another_run_has_ended_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config(tmp_path), iters=1)
    events = finetune.events(config)
    list(masked_events(replace(config, adapter_path=str(tmp_path / "other")), ToyLM(VOCAB)))
    check = finetune.run.check

    def late(folder: Path, config: FinetuneConfig) -> None:
        check(folder, config)
        (tmp_path / "other").rename(folder)

    monkeypatch.setattr(finetune.run, "check", late)
    with pytest.raises(UsageError, match="already has a run"):
        next(events)


def test_only_folders_without_anything_but_locks_are_removed_at_the_end(tmp_path: Path) -> None:
    with lock(tmp_path / "new/run", SUPERVISING), lock(tmp_path / "new/run/inner"):
        pass
    assert not (tmp_path / "new").exists()
    with lock(tmp_path / "new/run"):
        (tmp_path / "new/run/metrics.jsonl").touch()
    assert (tmp_path / "new/run/metrics.jsonl").is_file()


def test_a_file_system_without_locks_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match=r"cannot lock the folder.*\n.*No locks available\ntry: a folder on a local"):
        lock(tmp_path).__enter__()
    assert holder(tmp_path) is None


def test_a_run_in_a_thread_is_not_asked_to_stop_by_a_signal_that_would_kill_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, begun, go = small_config(tmp_path), threading.Event(), threading.Event()

    def train() -> None:
        with closing(masked_events(config, ToyLM(VOCAB))) as events:
            assert any(isinstance(event, Prepared) for event in events)
            begun.set()
            go.wait(20)

    thread = threading.Thread(target=train)
    thread.start()
    begun.wait(20)
    assert cli.main(["runs", "stop", str(tmp_path / "run")]) == 1
    go.set()
    thread.join()
    assert "cannot be asked to stop" in capsys.readouterr().err
    assert metrics(config)[-1]["event"] == "Stopped"


def test_a_finished_run_does_not_stop(tmp_path: Path) -> None:
    config = replace(small_config(tmp_path), iters=1)
    with closing(masked_events(config, ToyLM(VOCAB))) as events:
        assert any(isinstance(event, Finished) for event in events)
    assert metrics(config)[-1]["event"] == "Finished"


def test_an_error_of_any_kind_is_the_last_line_of_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(small_config(tmp_path), iters=1)

    def save(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Snapshots, "save", save)
    with pytest.raises(ZeroDivisionError):
        list(masked_events(config, ToyLM(VOCAB)))
    assert metrics(config)[-1] == {"event": "RunFailed", "step": 1, "error": "division by zero", "cause": None}
