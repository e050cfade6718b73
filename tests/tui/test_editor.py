"""The user's editor."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from macllm.errors import MacllmError, UsageError
from macllm_tui import editor


def scripted(code: str) -> list[str]:
    """An editor that runs Python code with the path in `path`."""
    return [sys.executable, "-c", f"import os, sys, pathlib; path = pathlib.Path(sys.argv[1]); {code}"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_edited_text_returns_and_no_file_stays(folder: Path) -> None:
    code = "assert path.stat().st_mode & 0o777 == 0o600; path.write_text(path.read_text().upper() + '\\n')"
    assert editor.edit("größe\n\nend", scripted(code)) == "GRÖSSE\n\nEND"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("code", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_failed_editor_is_an_error_and_leaves_no_file(folder: Path, code: str) -> None:
    with pytest.raises(MacllmError, match="failed") as caught:
        editor.edit("text", scripted(code))
    assert "the text is as before" in (caught.value.remedy or "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("code", ["path.write_text('new'); sys.exit(1)", "path.write_bytes(b'\\xff')"])
def test_a_text_that_cannot_return_stays_in_its_file(folder: Path, code: str) -> None:
    with pytest.raises(MacllmError) as caught:
        editor.edit("text", scripted(code))
    (kept,) = folder.iterdir()
    assert str(kept) in (caught.value.remedy or "")


def test_a_missing_editor_is_an_error() -> None:
    with pytest.raises(MacllmError, match="cannot be used"):
        editor.edit("text", ["/no/such/editor"])


def test_an_interrupt_of_the_terminal_reaches_the_editor_alone() -> None:
    code = "import signal; assert signal.getsignal(2) is signal.default_int_handler; os.kill(os.getppid(), 2)"
    assert editor.edit("text", scripted(code)) == "text"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_visual_comes_before_editor_then_a_usual_one_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "nano")
    monkeypatch.setenv("VISUAL", shlex.join(["/my apps/code", "--wait"]))
    assert editor.command() == ["/my apps/code", "--wait"]
    monkeypatch.setenv("VISUAL", "")
    assert editor.command() == ["nano"]
    monkeypatch.setenv("EDITOR", "'")
    with pytest.raises(UsageError, match="not a command"):
        editor.command()
    monkeypatch.delenv("EDITOR")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="There is no editor"):
        editor.command()
    (tmp_path / "vi").touch(0o755)
    assert editor.command() == ["vi"]
