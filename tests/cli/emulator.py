"""A terminal that keeps its lines: returns, new lines, cursor up, erasing, colours, wrapping."""

from __future__ import annotations

import re

_CODES = re.compile(r"\033\[(\??)(\d*)([A-Za-z])|\r|\n|[^\033\r\n]")


class Emulator:
    """Rows of cells, in `columns` columns. A new width wraps every line again, as most terminals do."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.wrapped: list[bool] = [False]  # the row continues the one before
        self.at = (0, 0)  # row, column

    def write(self, text: str) -> None:
        """Interpret text. Raises ValueError for a code that is not known here."""
        rest = _CODES.sub("", text)
        if rest:
            raise ValueError(f"unknown codes {rest!r}")
        for match in _CODES.finditer(text):
            row, column = self.at
            part, code, number = match[0], match[3], int(match[2] or 1)
            if part == "\r":
                self.at = row, 0
            elif part == "\n":
                self._down()
            elif code == "A":
                self.at = max(0, row - number), column
            elif code == "K":
                del self.rows[row][column:]
            elif code == "J":
                del self.rows[row][column:], self.rows[row + 1 :], self.wrapped[row + 1 :]
            elif code is None:
                self._put(part)
            elif code != "m":
                raise ValueError(f"unknown code {part!r}")

    def resize(self, columns: int) -> None:
        """Take a new width."""
        lines: list[list[str]] = []
        for row, wrapped in zip(self.rows, self.wrapped, strict=True):
            if wrapped:
                lines[-1] += row
            else:
                lines.append(list(row))
        self.columns, self.rows, self.wrapped = columns, [], []
        for line in lines:
            for start in range(0, max(1, len(line)), columns):
                self.rows.append(line[start : start + columns])
                self.wrapped.append(start > 0)
        self.at = len(self.rows) - 1, len(self.rows[-1])

    @property
    def lines(self) -> list[str]:
        """The text of each row, without blanks at its end."""
        return ["".join(row).rstrip() for row in self.rows]

    def _down(self, wrapped: bool = False) -> None:
        row = self.at[0] + 1
        if row == len(self.rows):
            self.rows.append([])
            self.wrapped.append(wrapped)
        self.at = row, 0

    def _put(self, character: str) -> None:
        if self.at[1] == self.columns:
            self._down(wrapped=True)
        row, column = self.at
        cells = self.rows[row]
        cells += [" "] * (column + 1 - len(cells))
        cells[column] = character
        self.at = row, column + 1
