"""Closed standard streams: answers, errors and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from macllm.files import occupy_standard_descriptors

GENERATE = "generate --temperature 0 -n 3 Hello"


def shell(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run macllm in a shell; `arguments` may end with redirections."""
    command = ["sh", "-c", f"'{sys.executable}' -m macllm {arguments}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("command", "redirection"),
    [(GENERATE, "<&-"), (GENERATE, "<&- 2>&-"), ("chat --plain --temperature 0 --max-tokens 3 Hello", "<&-")],
)
def test_an_answer_is_printed_with_stdin_and_stderr_closed(command: str, redirection: str) -> None:
    done = shell(f"{command} {redirection}")
    assert (done.returncode, done.stdout.strip()) == (0, shell(command).stdout.strip())
    assert "error" not in done.stderr


def test_a_prompt_read_from_closed_stdin_is_empty() -> None:
    done = shell("generate - <&-")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the prompt is empty")


@pytest.mark.parametrize("command", [GENERATE, "--version", "models ls"])
def test_a_closed_stdout_is_one_error(command: str) -> None:
    done = shell(f"{command} >&-")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: standard output is closed",
        "try: redirect it, as with > answer.txt",
    ]


def test_exit_codes_are_right_with_all_streams_closed() -> None:
    assert shell(f"{GENERATE} <&- >&- 2>&-").returncode == 1
    assert shell("no-such-command <&- >&- 2>&-").returncode == 2


def test_the_library_loads_and_saves_a_model_with_closed_stdin(tmp_path: Path) -> None:
    code = (
        "import os; os.close(0); import macllm; model, tokenizer = macllm.load(); "
        f"macllm.save(model, tokenizer, {str(tmp_path / 'copy')!r}); macllm.load({str(tmp_path / 'copy')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_open_descriptors_are_left_alone() -> None:
    before = [os.fstat(descriptor) for descriptor in (0, 1, 2)]
    assert occupy_standard_descriptors() == ()
    assert [os.fstat(descriptor) for descriptor in (0, 1, 2)] == before
