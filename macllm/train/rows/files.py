"""Files of rows: JSON lines, JSON lists, text and Parquet, compressed or not."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from macllm.errors import DataError

from .columns import EXAMPLES, Columns, parse
from .hub import Progress, RowFiles, is_dataset, open_split, open_validation
from .kinds import PlainText, Row

_ENDINGS = (
    ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet", ".txt",
)  # fmt: skip
_VALIDATION = ("valid", "validation", "val", "dev", "eval")
_SPLITS = ("train", *_VALIDATION, "test")
_STANDARD = Columns()
_CHUNK_BYTES = 1 << 14  # read at once; a frame may be thousands of times as large decompressed

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

Source = Path | RowFiles  # of rows: a file, a folder of texts, or named files, such as a split of a dataset


def find_files(data: str, valid: str, progress: Progress | None = None) -> tuple[Source, Source | None]:
    """The training rows and the validation rows or None, from a file, a folder or a dataset of the hub.

    A folder has train.jsonl (or another known ending), or it is a folder of texts itself, without those that are named
    as a split. It may have valid.jsonl, also as validation, val, dev or eval. A dataset without a split gives its
    split "train", and "validation" if it has one; missing files are downloaded.
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
            on_hub = f"--data hf:{data} for a dataset of the hub, or " if _HUB_NAME.fullmatch(data) else ""
            raise DataError(f"no file or folder {path}", remedy=f"{on_hub}a file of rows, such as train.jsonl")
        return path, given
    train = _named(path, ("train",)) or _all_texts(path)
    if train is None:
        raise DataError(f"no train.jsonl in {path}", remedy=f"put the rows into {path / 'train.jsonl'}")
    return train, given or _named(path, _VALIDATION)


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
    if isinstance(source, RowFiles):
        return list(source.files)
    return [(str(path), path) for path in (_texts(source) if source.is_dir() else [source])]


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    """The only file of rows with one of these names in a folder, or the only folder of texts."""
    files = [folder / f"{name}{ending}" for name in names for ending in _ENDINGS]
    found = [file for file in files if file.is_file()] + [folder / name for name in names if _texts(folder / name)]
    if len(found) > 1:
        raise DataError(
            f"{folder} has both {found[0].name} and {found[1].name}",
            cause="each may have the rows of the same split",
            remedy="keep one of them there, or name the files: --data and --valid",
        )
    return found[0] if found else None


def _all_texts(folder: Path) -> Source | None:
    """The texts in a folder, without those that are named as a split; None if there are none."""
    texts = _texts(folder)
    rows = [path for path in texts if path.stem not in _SPLITS]
    if len(rows) == len(texts):
        return folder if texts else None
    return RowFiles(str(folder), tuple((str(path), path) for path in rows)) if rows else None


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
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply", cause=str(error)) from error
    except _TwiceError as error:
        raise DataError(f"{where} has {error} twice in one object", remedy="keep one of the values") from error
    except ValueError as error:
        raise DataError(f"{where} is not JSON", cause=str(error), remedy=remedy) from error


class _TwiceError(ValueError):
    """A name that an object has twice."""


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(fields)
    if len(made) < len(fields):
        seen = set[str]()
        raise _TwiceError(next(repr(name) for name, _ in fields if name in seen or seen.add(name)))
    return made


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
        with path.open("rb") as packed, io.BufferedReader(_Frames(packed, zstandard.ZstdDecompressor())) as file:
            yield file
    except zstandard.ZstdError as error:
        raise DataError(f"cannot read {path}", cause=str(error), remedy="get or write the file again") from error


class _Frames(io.RawIOBase):
    """The decompressed frames of a file. Reading raises EOFError where the last one is incomplete.

    The library's own reader takes an incomplete frame for the end of the file.
    """

    def __init__(self, packed: BinaryIO, decompressor: Any) -> None:
        self._packed, self._decompressor = packed, decompressor
        self._frame: Any = None  # the one that is being read
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._read_more():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _read_more(self) -> bool:
        """Decompress some more bytes; False at the end of the file."""
        left = b""
        if self._frame is not None and self._frame.eof:
            self._frame, left = None, self._frame.unused_data
        packed = left or self._packed.read(_CHUNK_BYTES)
        if not packed:
            if self._frame is not None:
                raise EOFError("it ends within a compressed frame")
            return False
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._ready = memoryview(self._frame.decompress(packed))
        return True


def _parquet(path: Path, label: str) -> Iterator[tuple[Any, str]]:
    parquet, arrow = _library("pyarrow.parquet", path), _library("pyarrow", path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DataError(f"{path} has the column {twice[0]!r} twice", remedy="keep one of them")
            for batch in file.iter_batches():
                converted = [_converted(column, arrow) for column in batch.columns]
                for values in zip(*converted, strict=True):
                    yield dict(zip(names, values, strict=True)), f"{label}[{number}]"
                    number += 1
    except (arrow.ArrowException, ValueError, ArithmeticError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"cannot read {path}", cause=cause, remedy="get or write the file again") from error


def _converted(column: Any, arrow: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, ArithmeticError):  # times that datetime has no values for
        return column.cast(arrow.string()).to_pylist()


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"cannot read {path}",
            cause=f"{path.suffix} files need the package {name.partition('.')[0]}",
            remedy="pip install 'macllm[data]'",
        ) from error
