"""Texts of rows, in pieces of a few kilobytes, some of them held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from macllm.errors import DataError

from ..rows import Columns, Row, Source, each_row, find_files

Progress = Callable[[int], None]  # of the bytes read so far

_CHARS = 4096  # of a piece, at least, if its text is longer
_HELD_OUT = 20  # one piece in so many is held out, without files for that
_SAMPLE_BYTES = 10_000_000  # of the texts that are kept for the report
_TEXTS = ("messages", "prompt", "completion", "chosen", "rejected")


class Corpus:
    """Training texts, read once, and samples of training and held-out texts: the first 10 MB of each."""

    def __init__(self, data: Iterable[str], valid: str, columns: Columns, on_progress: Progress) -> None:
        found = [find_files(each, "") for each in data]
        self._sources = [train for train, _ in found]
        held_out = [find_files(valid, "")[0]] if valid else [more for _, more in found if more is not None]
        self._columns, self._on_progress = columns, on_progress
        self.training, self.held_out = Sample(), Sample()
        self._splits = not held_out
        for source in held_out:
            self.held_out.fill(_pieces(source, columns))

    def __iter__(self) -> Iterator[str]:
        """The training texts in pieces. Raises DataError for an invalid row, or without any text."""
        read = count = 0
        for source in self._sources:
            for piece in _pieces(source, self._columns):
                count += 1
                read += len(piece.encode())
                self._on_progress(read)
                if self._splits and count % _HELD_OUT == 0:
                    self.held_out.add(piece)
                    continue
                self.training.add(piece)
                yield piece
        if not self.training.texts:
            names = " and ".join(map(str, self._sources))
            raise DataError(f"no text in {names}", remedy='.txt files, or rows such as {"text": "..."}')


class Sample:
    """Texts of at most 10 MB; `is_cut` if there were more."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.size_bytes = 0
        self.is_cut = False

    def add(self, text: str) -> bool:
        """Keep the text if there is room for it; False if not."""
        size = len(text.encode())
        if self.size_bytes + size > _SAMPLE_BYTES:
            self.is_cut = True
            return False
        self.texts.append(text)
        self.size_bytes += size
        return True

    def fill(self, texts: Iterable[str]) -> None:
        """Keep texts until one has no room."""
        for text in texts:
            if not self.add(text):
                return


def _pieces(source: Source, columns: Columns) -> Iterator[str]:
    for row in each_row(source, columns):
        if isinstance(row, DataError):
            raise row
        for text in texts_of(row):
            yield from pieces_of(_valid(text))


def _valid(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, as `Tokenizer.encode` reads it."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def texts_of(row: Row) -> Iterator[str]:
    """The texts of a row without the marks of a chat template."""
    if isinstance(text := getattr(row, "text", None), str):
        yield text
    for name in _TEXTS:
        value = getattr(row, name, None)
        if isinstance(value, str):
            yield value
        for message in value if isinstance(value, list) else ():
            content = message.get("content")
            yield from ([content] if isinstance(content, str) else _parts(content))


def _parts(content: object) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            yield text


def pieces_of(text: str) -> Iterator[str]:
    """`text` in pieces of at least 4,096 characters, cut after a line, else before a space."""
    start = 0
    while len(text) - start > 2 * _CHARS:
        cut = _after_lines(text, text.find("\n", start + _CHARS, start + 2 * _CHARS))
        if cut == 0:
            cut = text.find(" ", start + _CHARS)
        if cut <= 0:
            break
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _after_lines(text: str, at: int) -> int:
    """The place after the line ends from `at` on; 0 for -1."""
    at += 1
    while 0 < at < len(text) and text[at] == "\n":
        at += 1
    return at
