"""Files of rows: JSON lines, JSON lists, text and Parquet, compressed or not."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from macllm.errors import DataError

from .columns import EXAMPLES, Columns, parse
from .hub import HubRows, Progress, is_dataset, open_split, open_validation
from .kinds import PlainText, Row

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt")
_STANDARD = Columns()

Source = Path | HubRows  # of rows: a file, a folder of texts, or a split of a dataset


def find_files(data: str, valid: str, progress: Progress | None = None) -> tuple[Source, Source | None]:
    """The training rows and the validation rows or None, from a file, a folder or a dataset of the hub.

    A folder has train.jsonl (or another known ending) and perhaps valid.jsonl, or it is a folder of texts itself. A
    dataset without a split gives its split "train", and "validation" if it has one; missing files are downloaded.
    """
    if is_dataset(valid):
        given: Source | None = open_split(valid, "validation", progress)
    else:
        given = Path(valid) if valid else None
    if is_dataset(data):
        _check_given(given)
        return open_split(data, "train", progress), given or open_validation(data, progress)
    path = Path(data)
    _check_regular(path)
    _check_given(given)
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"no file or folder {path}", remedy="--data train.jsonl")
        return path, given
    train = _named(path, "train") or (path if _texts(path) else None)
    if train is None:
        raise DataError(f"no train.jsonl in {path}", remedy=f"put the rows into {path / 'train.jsonl'}")
    return train, given or _named(path, "valid")


def _check_given(given: Source | None) -> None:
    """Refuse a missing file of validation rows."""
    if isinstance(given, Path):
        _check_regular(given)
        if not given.is_file() and not _texts(given):
            raise DataError(f"no file {given}", remedy="--valid a .jsonl file")


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_dir() and not path.is_file():
        raise DataError(
            f"{path} is not a file",
            cause="rows are read more than once, and a pipe can be read only once",
            remedy="write them into a .jsonl file first",
        )


def files_of(source: Source) -> list[tuple[str, Path]]:
    """The files of a source, each with its name in the places of rows."""
    if isinstance(source, HubRows):
        return list(source.files)
    return [(str(path), path) for path in (_texts(source) if source.is_dir() else [source])]


def _named(folder: Path, name: str) -> Path | None:
    """The file of rows with this name in a folder, or its folder of texts."""
    files = (folder / f"{name}{ending}" for ending in _ENDINGS)
    found = next((file for file in files if file.is_file()), None)
    return found or (folder / name if _texts(folder / name) else None)


def _texts(folder: Path) -> list[Path]:
    """The text files in a folder, in the order of their names; hidden ones are left out."""
    return sorted(path for path in folder.glob("[!.]*.txt") if path.is_file()) if folder.is_dir() else []


def read(source: Source, most: int | None = None, columns: Columns = _STANDARD) -> list[Row]:
    """All rows of a source, or the first `most`. Raises DataError with file and line."""
    rows: list[Row] = []
    for row in islice(each_row(source, columns), most):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    if not rows:
        raise DataError(f"no rows in {source}", remedy=EXAMPLES)
    return rows


def each_row(source: Source, columns: Columns = _STANDARD) -> Iterator[Row | DataError]:
    """The rows of a source, one by one, with the error in place of each invalid row.

    An error that ends a file comes last in it.
    """
    for label, path in files_of(source):
        try:
            for value, where in _values(path, label):
                if isinstance(value, DataError | PlainText):
                    yield value
                else:
                    yield _parsed(value, where, columns)
        except DataError as error:
            yield error
        except OSError as error:
            yield _unreadable(path, error.strerror or str(error), None, error)
        except (EOFError, zlib.error) as error:
            yield _unreadable(path, str(error), "get or write the file again", error)


def _parsed(value: Any, where: str, columns: Columns) -> Row | DataError:
    try:
        return parse(value, where, columns)
    except DataError as error:
        return error


def _unreadable(path: Path, cause: str, remedy: str | None, error: Exception) -> DataError:
    failure = DataError(f"cannot read {path}", cause=cause, remedy=remedy)
    failure.__cause__ = error
    return failure


def _values(path: Path, label: str) -> Iterator[tuple[Any, str]]:
    """The values of rows and their places; a text is a row already, and errors stand for values."""
    if path.suffix == ".txt":
        yield _text(path, label), label
    else:
        yield from _parquet(path, label) if path.suffix == ".parquet" else _json(path, label)


def _text(path: Path, label: str) -> PlainText | DataError:
    try:
        return PlainText(path.read_text(encoding="utf-8-sig"), label)
    except UnicodeDecodeError as error:
        return DataError(f"{label} is not UTF-8 text", cause=str(error))


def _json(path: Path, label: str) -> Iterator[tuple[Any, str]]:
    """The values of a file of JSON lines, or of one JSON list, and the place of each."""
    with _opened(path) as lines:
        number, is_list = 0, None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if is_list is None:
                is_list = path.name.removesuffix(".gz").removesuffix(".zst").endswith(".json") and _begins_list(line)
            if is_list:
                yield from _list(line + lines.read(), label)
                return
            place = f"{label}:{number}"
            try:
                value = _value(line, place, "one JSON object per line, UTF-8")
            except DataError as error:
                value = error
            yield value, place


def _begins_list(line: bytes) -> bool:
    return line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _list(data: bytes, path: str) -> Iterator[tuple[Any, str]]:
    values = cast("list[Any]", _value(data, path, "a JSON list of objects, UTF-8"))
    yield from ((value, f"{path}[{at}]") for at, value in enumerate(values))


def _value(data: bytes, where: str, remedy: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON", cause=str(error), remedy=remedy) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed."""
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as file:
            yield cast("BinaryIO", file)
        return
    if path.suffix != ".zst":
        with path.open("rb") as file:
            yield file
        return
    zstandard = _library("zstandard", path)
    try:
        with io.BufferedReader(zstandard.open(path, "rb")) as file:
            yield file
    except zstandard.ZstdError as error:
        raise DataError(f"cannot read {path}", cause=str(error), remedy="get or write the file again") from error


def _parquet(path: Path, label: str) -> Iterator[tuple[Any, str]]:
    parquet = _library("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    yield value, f"{label}[{number}]"
                    number += 1
    except _library("pyarrow", path).ArrowException as error:
        raise DataError(f"cannot read {path}", cause=str(error), remedy="get or write the file again") from error


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"cannot read {path}",
            cause=f"{path.suffix} files need the package {name.partition('.')[0]}",
            remedy="pip install 'macllm[data]'",
        ) from error
