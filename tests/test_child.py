"""Child processes: messages both ways, exits with their causes, no orphans."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from macllm.child import ChildProcess, Exit, portable
from macllm.errors import UsageError
from tests import child_targets
from tests.compiling import wait_for


class Talk:
    """A child process that records its messages and its exits."""

    def __init__(self, target: str, *arguments: Any) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.exits: queue.SimpleQueue[Exit] = queue.SimpleQueue()
        self.process = ChildProcess(
            f"tests.child_targets:{target}",
            *arguments,
            on_message=self.messages.put,
            on_exit=self.exits.put,
            log_prefix="test",
        )

    def message(self) -> Any:
        return self.messages.get(timeout=30)

    def exit(self) -> Exit:
        return self.exits.get(timeout=30)


def runs(pid: int) -> bool:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_messages_go_both_ways_in_order() -> None:
    talk = Talk("echo", child_targets.Note("hello"))
    assert talk.message() == child_targets.Note("hello")
    for number in range(50):
        talk.process.send(number)
    assert [talk.message() for _ in range(50)] == list(range(50))
    talk.process.end()
    assert talk.exit() == Exit(0, requested=True, log=None)


def test_sending_does_not_wait_for_a_child_that_reads_later(tmp_path: Path) -> None:
    talk = Talk("read_after", tmp_path / "read")
    opening = threading.Timer(10, (tmp_path / "read").touch)
    opening.start()
    began = time.monotonic()
    for size in (4 << 20, 1, 2 << 20, 3):
        talk.process.send(bytes(size))
    assert time.monotonic() - began < 2
    assert talk.messages.empty()
    opening.cancel()
    (tmp_path / "read").touch()
    assert [talk.message() for _ in range(4)] == [4 << 20, 1, 2 << 20, 3]
    talk.process.end()
    assert talk.exit() == Exit(0, requested=True, log=None)


def test_a_child_that_never_reads_is_killed_with_messages_unsent() -> None:
    talk = Talk("sleep_ignoring_messages")
    talk.message()
    began = time.monotonic()
    for _ in range(3):
        talk.process.send(bytes(4 << 20))
    talk.process.end(grace_seconds=0.2)
    assert time.monotonic() - began < 5
    assert talk.exit().code == -signal.SIGKILL
    talk.process.send("lost")


def test_a_value_without_a_pickle_is_an_error_of_the_sender() -> None:
    with pytest.raises(TypeError, match="pickle"):
        Talk("echo", threading.Lock())
    talk = Talk("echo", 1)
    with pytest.raises(TypeError, match="pickle"):
        talk.process.send(threading.Lock())
    talk.process.send(2)
    assert [talk.message(), talk.message()] == [1, 2]
    talk.process.end()


def test_on_exit_is_called_once_and_after_the_last_message() -> None:
    talk = Talk("count", 1000)
    assert talk.exit() == Exit(0, requested=False, log=None)
    assert talk.messages.qsize() == 1000
    talk.process.end()
    assert talk.exits.empty()
    assert talk.process.exit is not None


def test_an_exit_names_the_signal_of_a_crash_or_the_log_of_a_failure(own_home: Path) -> None:
    killed = Talk("echo", None)
    assert killed.message() is None
    os.kill(killed.process.pid, signal.SIGKILL)
    assert "SIGKILL, most often because the machine ran out of memory" in killed.exit().cause
    failed = Talk("fail", "last words")
    exit = failed.exit()
    assert exit.code == 1
    assert exit.log is not None
    assert exit.log.parent == own_home / "macllm" / "logs"
    assert "ValueError: last words" in exit.log.read_text()
    assert str(exit.log) in exit.cause
    assert list(exit.log.parent.iterdir()) == [exit.log]


def test_processes_that_the_child_started_end_with_it() -> None:
    for ending in ("end", "kill", "return"):
        talk = Talk("start_sleeper", ending == "return")
        sleeper = talk.message()
        if ending == "end":
            talk.process.end()
        if ending == "kill":
            os.kill(talk.process.pid, signal.SIGKILL)
        talk.exit()
        assert not runs(sleeper), ending


def test_a_child_that_ignores_the_end_request_is_killed() -> None:
    talk = Talk("sleep_ignoring_messages")
    sleeper = talk.message()
    began = time.monotonic()
    talk.process.end(grace_seconds=0.2)
    assert time.monotonic() - began < 5
    assert talk.exit().code == -signal.SIGKILL
    assert not runs(sleeper)


def test_an_interrupt_of_the_terminal_does_not_end_the_child() -> None:
    talk = Talk("echo", "here")
    assert talk.message() == "here"
    os.killpg(talk.process.pid, signal.SIGINT)
    talk.process.send("still here")
    assert talk.message() == "still here"
    talk.process.end()


PROGRAM = """
import os, sys, time
from macllm.child import ChildProcess
child = ChildProcess("tests.child_targets:start_sleeper", False, on_message=lambda pid: print(pid, flush=True))
{body}
"""


@pytest.mark.parametrize("body", ["time.sleep(60)", "sys.stdin.read()"])
def test_the_parents_death_ends_the_child_and_its_processes(body: str) -> None:
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes) as parent:
        assert parent.stdout is not None
        sleeper = int(parent.stdout.readline())
        if "stdin" in body:
            assert parent.stdin is not None
            parent.stdin.close()
            parent.wait(30)
            assert not runs(sleeper)
        parent.kill()
    wait_for(lambda: not runs(sleeper))


def test_a_signal_during_the_start_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception between start and record once left an orphaned process."""
    popen, pids = subprocess.Popen, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        pids.append(process.pid)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Talk("sleep_ignoring_messages")
    (pid,) = pids
    assert not runs(pid)


def test_the_exit_of_a_fork_does_not_end_the_child() -> None:
    code = """
import os, sys
from macllm.child import ChildProcess
child = ChildProcess("tests.child_targets:echo", 1, on_message=lambda message: None)
if os.fork() == 0:
    sys.exit()
os.wait()
print(child.exit)
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert (done.stdout, done.stderr) == (b"None\n", b"")


def test_a_child_that_cannot_be_started_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="nowhere"):
        Talk("echo", None)


def test_a_child_can_be_ended_twice_and_from_a_callback() -> None:
    ended = threading.Event()
    process: list[ChildProcess] = []

    def end(message: Any) -> None:
        process[0].end()

    process.append(ChildProcess("tests.child_targets:echo", 1, on_message=end, on_exit=lambda exit: ended.set()))
    assert ended.wait(30)
    process[0].end()
    process[0].end()


def test_portable_exceptions_keep_their_traceback_and_our_errors_stay_the_same() -> None:
    ours = UsageError("no", cause="because", remedy="do")
    assert portable(ours) is ours
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        abroad = pickle.loads(pickle.dumps(portable(error)))
    assert isinstance(abroad, ZeroDivisionError)
    assert "test_child.py" in "".join(abroad.__notes__)
