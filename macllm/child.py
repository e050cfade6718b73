"""Child processes: a process group, a log file, messages both ways, and the reason of the exit.

The parent creates a `ChildProcess`. The child calls `target` with a `Parent` and the arguments, and exits when it
returns. Messages are picklable values, best frozen dataclasses. When the parent exits or dies, `Parent.receive` raises,
so no child outlives its parent.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

from .errors import MacllmError

_GRACE_SECONDS = 2.0
_KILL_SECONDS = 1.0
_POLL_SECONDS = 0.01
_LOGS_KEPT = 20


@dataclass(frozen=True)
class Exit:
    """The end of a child process."""

    code: int  # negative: the number of the signal that killed it
    requested: bool  # by `ChildProcess.end`
    log: Path | None  # its output; None if it wrote nothing
    peak_bytes: int = field(default=0, compare=False)  # most memory that was resident; 0 if not known

    @property
    def cause(self) -> str:
        """The end as the cause of an error."""
        cause = f"its process ended with exit code {self.code}"
        if self.code < 0:
            name = signal.Signals(-self.code).name
            cause = f"its process was killed by {name}"
            cause += ", most often because the machine ran out of memory" if name == "SIGKILL" else ""
        return cause + (f"; its output is in {self.log}" if self.log else "")


class ChildProcess:
    """A running child process: leader of a process group that is killed with it, without a terminal."""

    def __init__(
        self,
        target: str,
        *arguments: Any,
        on_message: Callable[[Any], object],
        on_exit: Callable[[Exit], object] = lambda exit: None,
        log_prefix: str = "child",
    ) -> None:
        """Start `target`, a "module:function", with picklable `arguments`.

        A reader thread calls `on_message` with each message of the child, then `on_exit` once.
        Raises: OSError if no process can be started.
        """
        self._target = target
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None ends the writer thread
        self.send(arguments)
        self._on_message, self._on_exit = on_message, on_exit
        self._log = _open_log(log_prefix)
        self._pipe, self._theirs = Pipe()
        self._requested, self._parent = False, os.getpid()
        self._exit: Exit | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        # Signal handlers run in the main thread only, so Ctrl-C cannot interrupt the start in another thread.
        self._reader = threading.Thread(target=self._run, name=f"messages of {target}", daemon=True)
        atexit.register(self.end)
        try:
            self._reader.start()
            self._started.wait()
        except BaseException:
            self.end()
            raise
        if self._failure is not None:
            raise self._failure

    @property
    def pid(self) -> int:
        """The number of the process and of its group."""
        return self._process.pid

    @property
    def exit(self) -> Exit | None:
        """The end of the process; None while it runs."""
        return self._exit

    def send(self, message: Any) -> None:
        """Queue a message, pickled at once, from any thread; a child that does not read delays no caller.

        The message is lost if the child has ended, which `on_exit` reports.
        Raises: the error of pickling.
        """
        self._outbox.put(pickle.dumps(message))

    def end(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Ask the child to end, kill it and its group after `grace_seconds`, and wait until it has ended."""
        self._requested = True
        if self._reader.ident is None or self._parent != os.getpid():  # never started, or this is a fork
            return
        self._started.wait()
        self.send(_End())
        if threading.current_thread() is self._reader:
            return
        self._reader.join(grace_seconds)
        if self._reader.is_alive():
            self._kill()
            self._reader.join()

    def _run(self) -> None:
        """Thread main: start the child, pass its messages on, and wait for its end."""
        try:
            self._process = self._start()
        except OSError as error:
            self._failure = error
            atexit.unregister(self.end)
            _kept(self._log)
            return
        finally:
            self._theirs.close()
            self._started.set()
        writer = threading.Thread(target=self._write, name=f"messages to {self._target}", daemon=True)
        writer.start()
        with suppress(EOFError, OSError):
            while True:
                self._on_message(self._pipe.recv())
        code, peak = self._wait()
        self._kill()  # processes that it started and left
        self._outbox.put(None)
        writer.join()  # returns at once: the pipe has no reader, so every write fails
        self._pipe.close()
        atexit.unregister(self.end)
        self._exit = Exit(code, self._requested, _kept(self._log), peak)
        self._on_exit(self._exit)

    def _wait(self) -> tuple[int, int]:
        """The exit code, and the most memory that was resident, in bytes."""
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        except ChildProcessError:  # SIGCHLD is ignored
            return self._process.wait(), 0
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _write(self) -> None:
        """Thread main: write queued messages in order."""
        while (message := self._outbox.get()) is not None:
            with suppress(OSError):
                self._pipe.send_bytes(message)

    def _start(self) -> subprocess.Popen[bytes]:
        path = [each for each in sys.path if isinstance(each, str)]
        program = (
            f"import sys; sys.path[:] = {path!r}; "
            f"from macllm.child import main; main({self._theirs.fileno()}, {self._target!r})"
        )
        output: Any = self._log.open("ab") if self._log else subprocess.DEVNULL
        try:
            # a new process group: Ctrl-C in the terminal reaches only the parent, which decides what the child does
            return subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._theirs.fileno()],
                process_group=0,
            )
        finally:
            if self._log:
                output.close()

    def _kill(self) -> None:
        """Kill the group, and once the child has exited wait until its group is empty."""
        end = time.monotonic() + _KILL_SECONDS
        with suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError if only zombies are left
            os.killpg(self._process.pid, signal.SIGKILL)
            while self._process.returncode is not None and time.monotonic() < end:
                os.killpg(self._process.pid, 0)
                time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class _End:
    """The parent's request that the child ends."""


class Parent:
    """The child's connection to its parent, an argument of `target`. Any thread may send, one receives."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._sending = pipe, threading.Lock()
        self._gone = False

    def send(self, message: Any) -> None:
        """Send a message. Ends this process if the parent has ended."""
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError:
            self._gone = True
            self.leave()

    def receive(self) -> Any:
        """Wait for the next message. Raises: EOFError if the parent requests the end, or has ended."""
        try:
            message = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._gone = True
            raise EOFError from error
        if isinstance(message, _End):
            raise EOFError
        return message

    def leave(self) -> NoReturn:
        """End this process at once, from any thread."""
        self.kill_orphans()
        os._exit(0)

    def kill_orphans(self) -> None:
        """Kill this process and its group if the parent, which would do so, has ended."""
        if self._gone:
            os.killpg(0, signal.SIGKILL)


def main(descriptor: int, target: str) -> None:
    """Entry point of the child: call `target` with a `Parent` on the inherited pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    parent = Parent(Connection(descriptor))
    try:
        arguments = parent.receive()
    except EOFError:
        return
    module, _, function = target.partition(":")
    try:
        getattr(import_module(module), function)(parent, *arguments)
    finally:
        parent.kill_orphans()


def portable(error: BaseException) -> BaseException:
    """A picklable form of the error; a foreign one carries its traceback in a note."""
    if isinstance(error, MacllmError):
        return error
    trace = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error


def log_folder() -> Path:
    """The folder of children's logs: $MACLLM_HOME/logs, else in XDG's state folder."""
    if home := os.environ.get("MACLLM_HOME"):
        return Path(home) / "logs"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "macllm" / "logs"


def _open_log(prefix: str) -> Path | None:
    """A new log file, after the oldest are removed; None if none can be written."""
    try:
        folder = log_folder()
        folder.mkdir(parents=True, exist_ok=True)
        logs = sorted(folder.glob(f"{prefix}-*.log"), key=lambda path: path.stat().st_mtime)
        for old in logs[: -_LOGS_KEPT + 1]:
            old.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{prefix}-", suffix=".log", dir=folder)
        os.close(handle)
    except OSError:
        return None
    return Path(name)


def _kept(log: Path | None) -> Path | None:
    """The log, or None for an empty one, which is removed."""
    try:
        if log is None or log.stat().st_size:
            return log
        log.unlink()
    except OSError:
        return None
    return None
