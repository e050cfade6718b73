"""A file of JSON lines that grows record by record, and goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from macllm.errors import DataError, MacllmError, UsageError
from macllm.files import append, whole_lines


class Records:
    """The records of a file, each with an `id` of the work that made it.

    An incomplete last line, of a process that was killed, is removed. Raises DataError for lines that are no records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, Mapping[str, Any]] = {}
        if path.exists():
            self._records = {record["id"]: record for record in _read(path)}
        path.parent.mkdir(parents=True, exist_ok=True)

    def __contains__(self, id: str) -> bool:
        return id in self._records

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def check(self, ids: set[str]) -> None:
        """Raise UsageError for a record of other work than that of `ids`."""
        if other := len(self._records.keys() - ids):
            raise UsageError(
                f"{self.path} has {other} records of other prompts, principles or settings",
                remedy="the settings with which it began, or another file",
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; it is on the disk when this returns. Raises MacllmError if it cannot be written."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            append(self.path, line)
        except OSError as error:
            remedy = "free some disk space, then the same command again, which goes on"
            raise MacllmError(f"cannot write to {self.path}", cause=error.strerror, remedy=remedy) from error
        self._records[record["id"]] = record


class RecordFiles:
    """The records that a command makes, and those of the questions that it skips, in a file beside it.

    `settings` are those of the models that are asked, by which records are known.
    """

    def __init__(self, path: Path, settings: object = None) -> None:
        self.made, self.skipped = Records(path), Records(path.with_suffix(f".skipped{path.suffix}"))
        self._settings = settings

    def ids(self, about: object, questions: Sequence[object]) -> list[str]:
        """The id of each question. Raises UsageError for records of other work."""
        found = [identity(about, self._settings, number, question) for number, question in enumerate(questions)]
        for each in (self.made, self.skipped):
            each.check(set(found))
        return found

    def __contains__(self, id: str) -> bool:
        return id in self.made or id in self.skipped

    def add(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Append the records of ids that are not there yet; those without a training row are skipped ones."""
        for id, record in records:
            if id not in self:
                is_row = "completion" in record or "chosen" in record
                (self.made if is_row else self.skipped).add({"id": id, **record})


def identity(*parts: object) -> str:
    """Hexadecimal digits that are equal for equal parts only."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = whole_lines(path)
    except OSError as error:
        raise DataError(f"cannot read {path}", cause=error.strerror) from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if isinstance(record["id"], str):
                yield record
                continue
        except (ValueError, KeyError, TypeError):
            pass
        raise DataError(f"{path}:{number} is not a record of this command", remedy="another file")
