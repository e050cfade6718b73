"""A training run that sends itself a signal at a moment, for the table of kills.

`python -m tests.tables.killed SETTINGS SIGNAL MOMENT LIMIT`: SETTINGS are those of a run in JSON. Moments are numbered
from 0 once the run has begun: its events, files half written, and both sides of each sync, rename and removal; -1 is
none. Files longer than LIMIT bytes cannot be written; 0 is no limit. Prints the kinds of all moments.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import mlx.core as mx

from macllm.train.config import FinetuneConfig
from macllm.train.events import Advanced, Prepared
from tests.train.test_contract import VOCAB, masked_events
from tests.train.toy import ToyLM


class Moments:
    """The moments of this process; at number `at` it gets a signal."""

    def __init__(self, number: int, at: int) -> None:
        self.number, self.at = number, at
        self.begun = False
        self.kinds: list[str] = []

    def is_next(self) -> bool:
        """True if the next moment is the one."""
        return self.begun and len(self.kinds) == self.at

    def reach(self, kind: str) -> None:
        """Count a moment, and send the signal if it is the one."""
        if self.begun:
            chosen = self.is_next()
            self.kinds.append(kind)
            if chosen:
                os.kill(os.getpid(), self.number)

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a moment before it and one after it."""

        @wraps(function)
        def noted(*arguments: Any, **options: Any) -> Any:
            self.reach(f"before a {kind}")
            result = function(*arguments, **options)
            self.reach(f"after a {kind}")
            return result

        return noted

    def half(self, write: Callable[..., None]) -> Callable[..., None]:
        """The function, which leaves half a file at the moment."""

        def noted(path: str, *arguments: Any) -> None:
            write(path, *arguments)
            if self.is_next():
                os.truncate(path, Path(path).stat().st_size // 2)
            self.reach("in a write")

        return noted


def interrupt(*_: object) -> None:
    """End the run as the command line does."""
    raise KeyboardInterrupt


def main(settings: str, number: int, at: int, limit: int) -> None:
    """Run, and print the kinds of the moments."""
    moments = Moments(number, at)
    os.fsync = moments.around("sync", os.fsync)
    Path.rename = moments.around("rename", Path.rename)  # type: ignore[method-assign]
    shutil.rmtree = moments.around("removal", shutil.rmtree)  # type: ignore[assignment]
    mx.save_safetensors = moments.half(mx.save_safetensors)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, interrupt)
    for event in masked_events(FinetuneConfig(**json.loads(settings)), ToyLM(VOCAB, dropout=0.1)):
        if isinstance(event, Prepared):
            moments.begun = True
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        evaluates = isinstance(event, Advanced) and event.work == "evaluating"
        moments.reach("in an evaluation" if evaluates else "at an event")
    print(json.dumps(moments.kinds))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
