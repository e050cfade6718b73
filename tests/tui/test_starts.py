"""Chats that start, answer and end many times, with the engine in a thread and in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripted_cli.py"


def once(transport: str) -> tuple[int, bytes]:
    """Exit code and stderr of a chat whose answer ends, and is on stdout."""
    command = [sys.executable, str(SCRIPT), f'"words in a {transport}"', "chat", "--max-tokens", "10", "Hi"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False)
    assert len(run.stdout) > 5
    narration = (b"loading maclet\n", b"The answer is cut off at the token limit (--max-tokens).\n")
    return run.returncode, b"".join(line for line in run.stderr.splitlines(True) if line not in narration)


@pytest.mark.parametrize("transport", ["thread", "process"])
@pytest.mark.parametrize("times", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_every_chat_starts_and_stops_with_exit_code_0(transport: str, times: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert list(pool.map(once, [transport] * times)) == [(0, b"")] * times
