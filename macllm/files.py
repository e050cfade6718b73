"""Files: atomic writes, JSON, checks of file types, and the standard descriptors.

A reader sees the old content or the new, even if the process is killed or the machine loses power: content is written
to a temporary file in the same folder and synchronized before it takes the file's name.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_NAME_CHARS = 50  # of a file's name in its draft's name; file systems limit names to 255 bytes
# First bytes of a Git LFS pointer, which a clone without git-lfs has in place of a large file
# (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
_POINTER = b"version https://git-lfs.github.com/spec/"
_AGAIN = "download it again: the address led to an error"
_PAGE = ("a web page, not the file itself", "download it again: the address led to a page")
_SAFETENSORS = "take the checkpoint in safetensors form"
_MESSAGES = (b"entry not found", b"repository not found", b"revision not found", b"invalid username or password")
_HEAD_BYTES = 256
_SHOWN_CHARS = 80
# First bytes of such a file (lower case), its description and its remedy.
_WRONG_CONTENTS = (
    (_POINTER, "a Git LFS pointer, not the file itself", "git lfs pull, in its folder"),
    (b"<!doctype html", *_PAGE),
    (b"<html", *_PAGE),
    (b"<?xml", "an answer of a server, not the file itself", _AGAIN),
    (b'{"error', "an answer of a server, not the file itself", _AGAIN),
    (b"gguf", "a GGUF file under another name", _SAFETENSORS),
    (b"pk\x03\x04", "a zip archive, as PyTorch's pickled weights are", _SAFETENSORS),
    *(
        (bytes((0x80, protocol)), "a Python pickle, as PyTorch's old weights are", _SAFETENSORS)
        for protocol in (2, 3, 4, 5)
    ),
    (b"\x1f\x8b", "compressed by gzip", "gunzip it"),
)


@contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Generator[BinaryIO]:
    """A file to write; it becomes `path` at the end of the block, unless the block raises.

    The permissions of a replaced file are kept; of a link, the link is replaced, not its target.
    Raises: OSError, with `path` unchanged; FileExistsError for an existing file, unless `overwrite`.
    """
    with draft(path) as temp, temp.open("xb") as file:
        with suppress(FileNotFoundError):
            before = path.lstat()
            if stat.S_ISREG(before.st_mode):
                temp.chmod(stat.S_IMODE(before.st_mode))
        yield file
        file.flush()
        os.fsync(file.fileno())
        publish(temp, path, overwrite=overwrite)


@contextmanager
def draft(path: Path) -> Generator[Path]:
    """A free name beside `path`; a file left there is removed at the end of the block."""
    temp = path.with_name(f".{path.name[:_NAME_CHARS]}.{os.urandom(6).hex()}.tmp")
    try:
        yield temp
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def publish(temp: Path, path: Path, *, overwrite: bool = True) -> None:
    """Move a written file to `path`. Raises: FileExistsError for an existing one, unless `overwrite`."""
    if overwrite:
        temp.replace(path)
    else:
        _name_new(temp, path)
    # The file has its name already, and some file systems cannot open or synchronize a folder.
    with suppress(OSError):
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it is missing; the content is on the disk when this returns.

    Raises: OSError, with the file as it was.
    """
    with path.open("ab") as file:
        size = file.tell()
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(size)
            raise


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that grows by `append`, without their ends.

    An incomplete last line, of a process that was killed, is removed from the file. Raises: OSError.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    return whole.split(b"\n")[:-1]


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a UTF-8 file atomically. Raises: as `replacing`."""
    content = text.encode("utf-8")
    with replacing(path, overwrite=overwrite) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with an indent of two, atomically. Raises: as `replacing`."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: object, indent: int | None = None, *, compact: bool = False) -> str:
    """JSON of a value, without spaces if `compact`.

    Lone surrogates, as in names of files, are escaped: no encoding can write them.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, separators=(",", ":") if compact else None)
    return text.encode("utf-8", "backslashreplace").decode()


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises: OSError; ValueError for invalid or too deeply nested JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("values are nested too deeply") from error


def wrong_content(path: Path, *, may_be_text: bool = False) -> tuple[str, str] | None:
    """Cause and remedy for a wrong file, such as a Git LFS pointer, by its first bytes; else None.

    Recognizes magic numbers, and the messages and zeros that servers and interrupted downloads leave in place of a
    file. Other text counts as a message unless the file `may_be_text`.
    """
    head = _head(path)
    if head and not any(head):
        return "it begins with zeros: its space was allocated and never written", "download it again"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what, remedy in _WRONG_CONTENTS:
        if start.lower().startswith(magic):
            return "it is " + what, remedy
    text = start.decode("utf-8", "ignore")
    line = text.split("\n")[0].strip()
    is_message = start.lower().startswith(_MESSAGES) or (text[:1].isalpha() and not may_be_text)
    if is_message and all(char.isprintable() or char.isspace() for char in text):
        shown = line if len(line) <= _SHOWN_CHARS else line[:_SHOWN_CHARS] + "..."
        return f"it is text, not the file itself: {shown!r}", _AGAIN
    return None


def is_pointer(path: Path) -> bool:
    """True for a Git LFS pointer in place of a file."""
    return _head(path).startswith(_POINTER)


def _head(path: Path) -> bytes:
    """The first bytes of a file; empty if it is not a regular file or cannot be read."""
    if not path.is_file():  # reading a pipe would block
        return b""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:  # the caller that opens the file reports it
        return b""


def _name_new(temp: Path, path: Path) -> None:
    """Give a file its name unless the name is taken. Raises: FileExistsError."""
    try:
        path.hardlink_to(temp)  # unlike a rename, a link never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temp.replace(path)


def occupy_standard_descriptors() -> tuple[int, ...]:
    """Open those of descriptors 0, 1 and 2 that are closed, and return them.

    Reading from 0 gives nothing, writing to 1 still fails, writing to 2 is ignored. Otherwise the next opened file
    would get the number: MLX treats descriptor 0 as a failure to open, and printed text would go into a file with
    descriptor 1 or 2.
    """
    closed: list[int] = []
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # open returns the lowest free number, this one
            closed.append(descriptor)
    return tuple(closed)
