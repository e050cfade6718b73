"""Chats that start, answer and end many times, with the engine in a thread and in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripted_cli.py"


def once(transport: str) -> int:
    """Exit code of a chat whose answer ends, and is on stdout."""
    command = [sys.executable, str(SCRIPT), f'"words in a {transport}"', "chat", "--max-tokens", "10", "Hi"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False)
    assert len(run.stdout) > 5
    assert b"Traceback" not in run.stderr
    assert b"terminate" not in run.stderr
    return run.returncode


@pytest.mark.parametrize("transport", ["thread", "process"])
@pytest.mark.parametrize("times", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_every_chat_starts_and_stops_with_exit_code_0(transport: str, times: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert list(pool.map(once, [transport] * times)) == [0] * times
