"""Text files as attachments of a message, read from the paths that its text names as @path.

`@"a b.md"` names a path with spaces, `@folder/` the list of a folder's files, and `@@notes.md` is the text
`@notes.md`. An @ that names nothing, as in an e-mail address or a decorator, is text.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from macllm.errors import UsageError
from macllm.units import bytes_text, count_text

from .conversation import Attachment

LARGEST_BYTES = 1_000_000
_BEGINNING = " (beginning)"
_MOST_ENTRIES = 1000  # of a folder
_REFERENCE = re.compile(r"""(?<![^\s(\["'])@(@?)(?:"([^"\n]+)"|(\S+))""")
_SUFFIXES = {".c", ".cpp", ".css", ".csv", ".go", ".html", ".js", ".json", ".jsonl", ".log", ".md", ".pdf", ".py"}
_SUFFIXES |= {".rs", ".rst", ".sh", ".sql", ".swift", ".tex", ".toml", ".ts", ".txt", ".xml", ".yaml", ".yml"}
_PUNCTUATION = ".,;:!?)]}'\"’”"  # may follow a path in a sentence


def read(name: str, folder: Path | None = None) -> Attachment:
    """The text of a file, or the list of the files of a folder.

    `name` is relative to `folder`, or to the working directory.

    Raises: UsageError if it is missing, cannot be read, is larger than `LARGEST_BYTES` or is not UTF-8 text.
    """
    path = located(name, folder)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            return Attachment(name, _listing(path))
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{name} is not a file.", cause="it is a device or a pipe", remedy="attach a text file")
        if found.st_size > LARGEST_BYTES:
            raise _too_large(name, found.st_size)
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no file {name}.", remedy="check the path; completion offers the files; @@ sends it as text"
        ) from error
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{name} cannot be read.", cause=cause, remedy="attach another file") from error
    if len(content) > LARGEST_BYTES:
        raise _too_large(name, len(content))
    return Attachment(name, _decoded(name, content))


def referenced(text: str, folder: Path | None = None) -> tuple[str, tuple[Attachment, ...]]:
    """The text with @@ resolved, and the files it names, each once.

    Raises: UsageError for a file that cannot be attached, and for a missing one that is surely meant.
    """
    attachments: dict[str, Attachment] = {}
    parts: list[str] = []
    end = 0
    for found in references(text, folder):
        if found.escaped:
            parts.append(text[end : found.start])
            end = found.start + 1
        elif found.name not in attachments:
            attachments[found.name] = read(found.name, folder)
    return "".join(parts) + text[end:], tuple(attachments.values())


@dataclass(frozen=True)
class Reference:
    """A path in a text, from the @ at `start` to `end`."""

    name: str
    start: int
    end: int
    escaped: bool


def references(text: str, folder: Path | None = None) -> Iterator[Reference]:
    """The paths that a text names: existing ones, and missing ones that are surely meant.

    Those are in a folder that exists, or have a usual suffix.
    """
    for match in _REFERENCE.finditer(text):
        escape, quoted, bare = match.groups()
        for name in [quoted] if quoted else _readings(bare):
            if _is_meant(name, folder):
                end = match.end() if quoted else match.start(3) + len(name)
                yield Reference(name, match.start(), end, bool(escape))
                break


def reference(name: str) -> str:
    """The text that names an attachment: @notes.md, or @"my notes.md"."""
    return f"@{name}" if re.fullmatch(r"[^\s\"]+", name) and name[-1] not in _PUNCTUATION else f'@"{name}"'


def shortened(text: str, attached: tuple[Attachment, ...], most: int) -> tuple[str, tuple[Attachment, ...]]:
    """A message with at most the first `most` characters of each attachment; 0: without them.

    A new name says that the rest is missing, also where the text names the attachment.
    """
    kept: list[Attachment] = []
    for each in attached:
        named = rf"(?<![^\s(\[\"']){re.escape(reference(each.name))}(?![\w/]|[.-]\w)"
        if most == 0:
            text = re.sub(named, lambda _, name=each.name: name, text)
        elif len(each.text) <= most:
            kept.append(each)
        else:
            beginning = Attachment(each.name.removesuffix(_BEGINNING) + _BEGINNING, each.text[:most])
            kept.append(beginning)
            text = re.sub(named, lambda _, name=beginning.name: reference(name), text)
    return text, tuple(kept)


def _readings(bare: str) -> list[str]:
    """The word itself, then the word without the punctuation that ends it."""
    shorter = [bare]
    while shorter[-1] and shorter[-1][-1] in _PUNCTUATION:
        shorter.append(shorter[-1][:-1])
    return [name for name in shorter if name]


def _is_meant(name: str, folder: Path | None) -> bool:
    path = located(name, folder)
    try:
        if path.is_dir():
            return name.endswith("/") and len(name) > 1
        if path.exists():
            return True
        parent, _, last = name.rpartition("/")
        if not parent:
            return path.suffix in _SUFFIXES
        return bool(last) and last[-1] not in _PUNCTUATION and located(parent, folder).is_dir()
    except (OSError, ValueError):
        return False


def located(name: str, folder: Path | None = None) -> Path:
    """The path that a user names, relative to `folder` or the working directory; ~ is a home folder."""
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # ~ of an unknown user
        path = path.expanduser()
    return (folder or Path()) / path


def _too_large(name: str, size: int) -> UsageError:
    cause = f"it has {bytes_text(size)}; an attachment has at most {bytes_text(LARGEST_BYTES)}"
    return UsageError(f"{name} is too large to attach.", cause=cause, remedy="attach a part of it")


def _decoded(name: str, content: bytes) -> str:
    remedy = "attach a text file in UTF-8; iconv converts other encodings"
    if b"\0" in content:
        raise UsageError(f"{name} is not text.", cause="it has zero bytes", remedy=remedy)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text.", cause=f"invalid at byte {error.start}", remedy=remedy) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _listing(path: Path) -> str:
    """The files of a folder and their sizes, a line each, without hidden ones. Folders end with a slash."""
    entries = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=lambda each: each.name)
    lines = [_entry(entry) for entry in entries[:_MOST_ENTRIES]]
    if len(entries) > _MOST_ENTRIES:
        lines.append(f"… and {count_text(len(entries) - _MOST_ENTRIES)} more")
    return "\n".join(lines or ["(no files)"]) + "\n"


def _entry(path: Path) -> str:
    try:
        return f"{path.name}/" if path.is_dir() else f"{path.name}  {bytes_text(path.stat().st_size)}"
    except OSError:
        return path.name
