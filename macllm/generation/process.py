"""A model in a process of its own: what kills it leaves this one alive, and it never writes on this one's terminal."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from macllm.errors import EngineCrashedError

from .engine import EngineInfo, EventStream, Job, MemoryUse, Messages, News, Tell, closed_error
from .request import Done, Event, Request

_GRACE_SECONDS = 2.0
_LOGS_KEPT = 20


class ProcessEngine:
    """A model in a child process. It is started at once, and again by the first call after it crashed."""

    def __init__(
        self,
        model_name: str,
        adapter: str | None = None,
        *,
        loader: str = "macllm.checkpoint:load",
        tell: Tell | None = None,
    ) -> None:
        """`loader` is `module:function`; in the child it is called with the name and `adapter=`.

        `tell` is called in a thread with what there is to know before the model is loaded.
        """
        self._model_name = model_name
        self._tell = tell
        self._options = {"loader": loader, "model_name": model_name, "adapter": adapter}
        self._lock = threading.Lock()
        self._closed = False
        self._info: EngineInfo | None = None
        self._child = self._start()

    @property
    def info(self) -> EngineInfo:
        """The model. Waits until it is loaded; raises what loading raised."""
        if self._info is None:
            self._info = self._call("info").result()
        assert self._info is not None
        return self._info

    def submit(self, request: Request) -> EventStream:
        """Events of the completion, which begins at once. Closing the iterator stops it after the current step."""
        job = self._call("run", request)
        return EventStream(job, partial(self._stop, job))

    def render(self, messages: Messages, **variables: Any) -> tuple[int, ...]:
        """The prompt tokens of a conversation. Waits for the completion in progress."""
        return self._call("render", messages, variables).result()

    def usage(self) -> MemoryUse:
        """Memory of the child, at any moment."""
        return self._call("usage").result()

    def cancel(self) -> None:
        """Stop what is being made after the current step; its events end with Done("cancelled")."""
        self._child.cancel(None)

    def close(self) -> None:
        """Give the model up: ends the child, whatever it is doing. Calls after this raise UsageError."""
        with self._lock:
            self._closed = True
        self._child.end()

    def _call(self, method: str, *arguments: Any) -> Job:
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._child.crashed:
                self._child = self._start()
            return self._child.call(method, arguments)

    def _start(self) -> _Child:
        child = _Child(self._options, self._tell)
        weakref.finalize(self, child.end)  # also when the program ends
        return child

    def _stop(self, job: Job) -> None:
        self._child.cancel(job)


class _Child:
    """One life of the process, and the calls it has not answered."""

    def __init__(self, options: dict[str, Any], tell: Tell | None) -> None:
        self._model_name = options["model_name"]
        self._tell = tell
        self._log = _open_log()
        self._pipe, theirs = Pipe()
        program = (
            f"import sys; sys.path[:] = {[path for path in sys.path if isinstance(path, str)]!r}; "
            f"from macllm.generation.child import main; main({theirs.fileno()}, {options!r})"
        )
        output: Any = self._log.open("ab") if self._log else subprocess.DEVNULL
        try:
            # its own process group: Ctrl-C in the terminal is for us, who then say what the child shall do
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        finally:
            theirs.close()
            if self._log:
                output.close()
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._gone = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"events of {self._model_name}", daemon=True)
        self._reader.start()

    @property
    def crashed(self) -> bool:
        """Whether the process is no more."""
        return self._gone.is_set()

    def call(self, method: str, arguments: tuple[Any, ...]) -> Job:
        """Ask for something; the job gets what the child answers, or the news of its end."""
        job = Job()
        with self._lock:
            number = next(self._numbers)
            self._jobs[number] = job
            with suppress(OSError):  # it is gone: the reader sees that too and tells the job
                self._pipe.send((method, number, arguments))
            if self._gone.is_set():
                self._tell_all(self._reason())
        return job

    def cancel(self, job: Job | None) -> None:
        """Tell the child that nobody wants this job any more, or any."""
        with self._lock, suppress(OSError):
            for number, each in self._jobs.items():
                if job is None or each is job:
                    self._pipe.send(("cancel", number, ()))

    def end(self) -> None:
        """End the process and wait for its end."""
        self._ending.set()
        with self._lock, suppress(OSError):
            self._pipe.send(("end", -1, ()))
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()

    def _read(self) -> None:
        """The reader's thread: hand out answers until the child is gone."""
        with suppress(EOFError, OSError):
            while True:
                number, value = self._pipe.recv()
                if isinstance(value, News):
                    if self._tell:
                        self._tell(value)
                    continue
                with self._lock:
                    job = self._jobs.get(number)
                    if job is not None and (isinstance(value, Done) or not isinstance(value, Event)):
                        del self._jobs[number]
                if job is not None:
                    job.results.put(value)
        self._process.wait()
        with self._lock:
            self._gone.set()
            self._tell_all(self._reason())
            self._pipe.close()
        if self._log is not None and self._log.exists() and self._log.stat().st_size == 0:
            self._log.unlink()

    def _tell_all(self, reason: Exception) -> None:
        for job in self._jobs.values():
            job.results.put(reason)
        self._jobs.clear()

    def _reason(self) -> Exception:
        """Why there will be no more answers."""
        if self._ending.is_set():
            return closed_error()
        code = self._process.returncode
        cause = f"its process ended with exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            cause = f"its process was ended by {name}"
            cause += ", most often because the machine ran out of memory" if name == "SIGKILL" else ""
        wrote = self._log is not None and self._log.exists() and self._log.stat().st_size > 0
        log = f"; its last words are in {self._log}" if wrote else ""
        return EngineCrashedError(
            f"the engine of {self._model_name} crashed",
            cause=cause + log,
            remedy="ask again, the model is then loaded anew; or take a smaller model or context",
        )


def log_folder() -> Path:
    """Where engines write what they would have written on the terminal: $MACLLM_HOME, else XDG's state folder."""
    if home := os.environ.get("MACLLM_HOME"):
        return Path(home) / "logs"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "macllm" / "logs"


def _open_log() -> Path | None:
    """A new log file, the oldest making room for it; None where none can be written."""
    try:
        folder = log_folder()
        folder.mkdir(parents=True, exist_ok=True)
        logs = sorted(folder.glob("engine-*.log"), key=lambda path: path.stat().st_mtime)
        for old in logs[: -_LOGS_KEPT + 1]:
            old.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix="engine-", suffix=".log", dir=folder)
        os.close(handle)
    except OSError:
        return None
    return Path(name)
