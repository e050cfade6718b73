"""Targets of the child processes that tests start."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macllm.child import Parent


@dataclass(frozen=True)
class Note:
    """A message."""

    text: str


def echo(parent: Parent, first: Any) -> None:
    parent.send(first)
    with suppress(EOFError):
        while True:
            parent.send(parent.receive())


def count(parent: Parent, most: int) -> None:
    for number in range(most):
        parent.send(number)


def fail(parent: Parent, words: str) -> None:
    raise ValueError(words)


def read_after(parent: Parent, path: Path) -> None:
    """Read nothing until the path exists, then send the length of each message."""
    while not path.exists():
        time.sleep(0.01)
    with suppress(EOFError):
        while True:
            parent.send(len(parent.receive()))


def start_sleeper(parent: Parent, leave: bool) -> None:
    parent.send(subprocess.Popen(["sleep", "60"]).pid)
    if not leave:
        with suppress(EOFError):
            parent.receive()


def sleep_ignoring_messages(parent: Parent) -> None:
    parent.send(subprocess.Popen(["sleep", "60"]).pid)
    time.sleep(60)
