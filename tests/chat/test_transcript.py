from __future__ import annotations

import os
from pathlib import Path

import pytest

from macllm.chat import transcript
from macllm.chat.conversation import Turn
from macllm.errors import MacllmError, UsageError


def test_a_transcript_has_headings_of_speakers_reasoning_and_stops() -> None:
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


def test_leading_indentation_is_kept_and_incomplete_answers_are_marked() -> None:
    turns = [
        Turn(role="assistant", content="\n    code = 1\n\nend  \n", finish="length"),
        Turn(role="assistant", content=" \n", reasoning=" hm\n", finish="failed"),
    ]
    assert transcript.as_markdown(turns, model_name="m") == (
        "# Chat with m\n\n## m\n\n    code = 1\n\nend  \n\n*(cut at the token limit)*\n\n"
        "## m\n\n<details><summary>Reasoning</summary>\n\nhm\n\n</details>\n\n*(cut short by an error)*\n"
    )


@pytest.mark.parametrize(
    ("content", "closing"),
    [
        ("so:\n```python\ndef f(", "\n```"),
        ("````md\n```\nx\n```\n", "\n````"),
        ("~~~\n```\nx", "\n~~~"),
        ("```\n```python\nx", "\n```"),
        ("```\nx\n```\n", ""),
        ("`` ` ``\n```a`b```\n    ```\nx", ""),
    ],
)
def test_code_that_an_answer_leaves_open_ends_with_it(content: str, closing: str) -> None:
    turns = [Turn(role="assistant", content=content, finish="cancelled"), Turn(role="user", content="Go on")]
    assert transcript.as_markdown(turns, model_name="m") == (
        f"# Chat with m\n\n## m\n\n{content.strip()}{closing}\n\n*(stopped)*\n\n## You\n\nGo on\n"
    )


def test_a_transcript_is_synced_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, sync = tmp_path / "chat.md", [], os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    transcript.write(path, "é\n")
    assert synced[0] == (path.stat().st_ino, 3, False)
    assert path.read_bytes() == "é\n".encode()


def test_a_transcript_has_the_permissions_of_new_files(tmp_path: Path) -> None:
    transcript.write(tmp_path / "chat.md", "text")
    transcript.write(tmp_path / "chat.md", "text", overwrite=True)
    assert (tmp_path / "chat.md").stat().st_mode & 0o777 == 0o644


def test_a_file_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    transcript.write(path, "first\n")
    with pytest.raises(UsageError, match="exists") as caught:
        transcript.write(path, "second\n")
    assert caught.value.remedy == f"/export --force {path}"
    assert path.read_text() == "first\n"
    transcript.write(path, "second\n", overwrite=True)
    assert path.read_text() == "second\n"
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_a_file_is_still_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "chat.md"
    transcript.write(path, "first\n")
    with pytest.raises(UsageError, match="exists"):
        transcript.write(path, "second\n")
    assert path.read_text() == "first\n"


@pytest.mark.parametrize("force", [False, True])
def test_the_error_for_a_folder_does_not_suggest_force(force: bool, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder") as caught:
        transcript.write(tmp_path, "text", overwrite=force)
    assert caught.value.remedy == f"/export {tmp_path / 'chat.md'}"


@pytest.mark.parametrize("name", ["missing/chat.md", "file/chat.md"])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MacllmError) as caught:
        transcript.write(tmp_path / name, "text", overwrite=True)
    assert caught.value.cause
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MacllmError, match="could not be written") as caught:
        transcript.write(tmp_path / "chat.md", "text")
    assert caught.value.cause == "No space left on device"
    assert list(tmp_path.iterdir()) == []
