"""Atomic writing of files."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macllm import files

ROOT = Path(__file__).parent.parent
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: files.write_text(path, "new"),
    "json": lambda path: files.write_json(path, ["new"]),
    "bytes": lambda path: write_bytes(path, b"new"),
    "new file": lambda path: files.write_text(path, "new", overwrite=False),
}
OVERWRITERS = [name for name in WRITERS if name != "new file"]


def write_bytes(path: Path, content: bytes) -> None:
    with files.replacing(path) as file:
        file.write(content)


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open"])
@pytest.mark.parametrize("name", OVERWRITERS)
def test_a_full_disk_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(OSError, match="No space left"):
            WRITERS[name](path)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"file": "old"}


def test_a_file_size_limit_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    program = f"""
import resource, signal
from pathlib import Path
from macllm.files import replacing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with replacing(Path({str(path)!r})) as file:
        file.write(b"new" * 100_000)
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == os.strerror(errno.EFBIG)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"file": "old"}


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["in the middle", "before the name"])
def test_a_process_that_is_killed_leaves_the_old_content(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    program = f"""
import os, signal
from pathlib import Path
from macllm import files
if {moment == "before the name"}:
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with files.replacing(Path({str(path)!r})) as file:
    file.write(b"new" * 100_000)
    if {moment == "in the middle"}:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert all(each == path or each.name.startswith(".file.") for each in tmp_path.iterdir())
    files.write_text(path, "newer")
    assert path.read_text() == "newer"


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_folder_raises_the_systems_own_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("old")
    for path, kind in [(tmp_path / "none" / "x", FileNotFoundError), (tmp_path / "file" / "x", NotADirectoryError)]:
        with pytest.raises(kind):
            WRITERS[name](path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
@pytest.mark.parametrize("name", OVERWRITERS)
def test_a_read_only_folder_keeps_its_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            WRITERS[name](path)
    finally:
        tmp_path.chmod(0o755)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"file": "old"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, seen, sync = tmp_path / "file", list[tuple[int, bool]](), os.fsync

    def note(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_ino, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    WRITERS[name](path)
    assert seen == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
@pytest.mark.parametrize("name", OVERWRITERS)
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, name: str, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    WRITERS[name](path)
    assert path.stat().st_mode & 0o777 == mode
    assert "new" in path.read_text()


@pytest.mark.parametrize("name", WRITERS)
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path, name: str) -> None:
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            path = tmp_path / f"{mask}"
            WRITERS[name](path)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", OVERWRITERS)
def test_a_symbolic_link_is_replaced_and_its_target_is_unchanged(tmp_path: Path, name: str) -> None:
    blob, path = tmp_path / "blob", tmp_path / "file"
    blob.write_text("of the cache")
    path.symlink_to(blob)
    WRITERS[name](path)
    assert not path.is_symlink()
    assert blob.read_text() == "of the cache"
    assert blob.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("taken", ["file", "folder"])
def test_an_existing_file_is_not_overwritten_without_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    files.write_text(path, "first", overwrite=False)
    if taken == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(FileExistsError):
        files.write_text(path, "second", overwrite=False)
    assert path.is_dir() if taken == "folder" else path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, ".hidden", "a b\nc"])
def test_any_name_that_the_file_system_takes_can_be_written(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "é\r\n")
    assert (tmp_path / name).read_bytes() == "é\r\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("value", [{"b": [1, None], "a": "é😀"}, [], "text", {"z": {"y": 1.5}}])
def test_json_that_is_written_reads_back_equal(tmp_path: Path, value: object) -> None:
    files.write_json(tmp_path / "file", value)
    assert files.read_json(tmp_path / "file") == value
    text = (tmp_path / "file").read_text("utf-8")
    assert text.endswith("\n")
    assert "\\u" not in text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00\x01", b"[" * 100_000, b'{"a": }', b"nul"])
def test_invalid_json_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        files.read_json(tmp_path / "file")
    assert str(caught.value)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({"a": 1}), "utf-8-sig")
    assert files.read_json(tmp_path / "file") == {"a": 1}


def test_values_that_cannot_be_encoded_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "file", "\ud800")
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "file", {1, 2})
    assert list(tmp_path.iterdir()) == []


# The log of a child process begins empty, and a snapshot is a folder that is renamed.
EXCEPTIONS = {
    "macllm/chat/database.py: rename",  # moves a damaged file aside
    "macllm/child.py: mkstemp",
    "macllm/train/runs/fork.py: hardlink_to",  # shares the files of a snapshot, which never change
    "macllm/train/snapshot.py: rename",
    "tui/editor.py: mkstemp",
}


def atomic_write_calls(path: Path) -> Iterator[str]:
    """Calls that write files atomically without the module `files`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, keywords = node.func.attr, [each.arg for each in node.keywords]
        takes_a_target = (len(node.args), keywords) in ((1, []), (0, ["target"]))
        of_a_path = name in ("replace", "rename", "hardlink_to") and takes_a_target
        if of_a_path or name in ("fsync", "fdatasync", "mkstemp", "NamedTemporaryFile", "mktemp"):
            yield f"{path.relative_to(ROOT)}: {name}"


def test_a_failed_append_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    files.append(path, b"one\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.append(path, b"two\n")
    monkeypatch.undo()
    files.append(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_only_one_module_writes_atomically() -> None:
    sources = [path for folder in ("macllm", "tui") for path in (ROOT / folder).rglob("*.py")]
    found = {
        call
        for path in sources
        if path.name != "files.py" or path.parent.name != "macllm"
        for call in atomic_write_calls(path)
    }
    assert found == EXCEPTIONS


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\n\x0e\n\x05<unk>", b"\xff\xfe{\0", b"[" * 300])
def test_a_damaged_file_is_not_taken_for_another_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert files.wrong_content(tmp_path / "file") is None


def test_only_the_module_files_recognizes_git_lfs_pointers() -> None:
    mark = "git-lfs.github.com"
    sources = Path(files.__file__).parent.rglob("*.py")
    assert [path for path in sources if mark in path.read_text("utf-8")] == [Path(files.__file__)]


def test_json_with_lone_surrogates_is_written_and_read_as_it_was(tmp_path: Path) -> None:
    """Names of files have them, where they are not UTF-8."""
    files.write_json(tmp_path / "a.json", {"\udcff": "\ud800ä"})
    assert files.read_json(tmp_path / "a.json") == {"\udcff": "\ud800ä"}


def test_a_line_that_was_cut_off_is_removed_and_the_next_one_appended(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    files.append(path, b"one\n")
    path.write_bytes(path.read_bytes() + b"t")
    assert files.whole_lines(path) == [b"one"]
    files.append(path, b"two\n")
    assert files.whole_lines(path) == [b"one", b"two"]
    assert path.read_bytes() == b"one\ntwo\n"
