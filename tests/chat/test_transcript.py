from __future__ import annotations

from pathlib import Path

import pytest

from macllm.chat import transcript
from macllm.chat.session import Turn
from macllm.errors import MacllmError, UsageError


def test_a_transcript_says_who_said_what() -> None:
    turns = [
        Turn(role="user", content="Hi\nthere"),
        Turn(role="assistant", content="\nHello.\n", reasoning="greet", finish="stop"),
        Turn(role="user", content="Count"),
        Turn(role="assistant", content="1 2", finish="cancelled"),
    ]
    assert transcript.as_markdown(turns, model_name="maclet", system="Be kind.") == (
        "# Chat with maclet\n\n## System\n\nBe kind.\n\n## You\n\nHi\nthere\n\n## maclet\n\n"
        "<details><summary>Reasoning</summary>\n\ngreet\n\n</details>\n\nHello.\n\n## You\n\nCount\n\n"
        "## maclet\n\n1 2\n\n*(stopped)*\n"
    )


def test_a_file_is_never_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    transcript.write(path, "first\n")
    with pytest.raises(UsageError, match="exists") as caught:
        transcript.write(path, "second\n")
    assert caught.value.remedy == f"/save --force {path}"
    assert path.read_text() == "first\n"
    transcript.write(path, "second\n", overwrite=True)
    assert path.read_text() == "second\n"
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_a_file_is_still_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(transcript.os, "link", refuse)
    path = tmp_path / "chat.md"
    transcript.write(path, "first\n")
    with pytest.raises(UsageError, match="exists"):
        transcript.write(path, "second\n")
    assert path.read_text() == "first\n"


@pytest.mark.parametrize("name", ["missing/chat.md", "file/chat.md", "folder"])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MacllmError) as caught:
        transcript.write(tmp_path / name, "text", overwrite=True)
    assert caught.value.cause
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transcript.os, "fsync", full)
    with pytest.raises(MacllmError, match="could not be written") as caught:
        transcript.write(tmp_path / "chat.md", "text")
    assert caught.value.cause == "No space left on device"
    assert list(tmp_path.iterdir()) == []
