"""LaTeX formulas as Unicode text: `a^2` → a², `\\frac{a+b}{2}` → (a + b)/2. No Textual in here.

A formula with a single unknown piece stays as it is: a half converted one would be wrong without looking so.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from . import latex_symbols as symbols

_LONGEST = 2000  # characters
_DEEPEST = 16  # levels of braces

Kind = Literal["ordinary", "group", "fraction", "operator", "binary", "relation", "open", "close", "comma", "space"]


@dataclass(frozen=True)
class _Atom:
    """A piece of a formula; its kind decides the space around it. A group is in braces or under a root."""

    text: str
    kind: Kind = "ordinary"


class _UnknownError(Exception):
    """A piece of the formula has no form in Unicode text."""


@lru_cache(maxsize=512)
def to_unicode(formula: str) -> str | None:
    """The formula, given without its dollar signs or brackets; None if any piece of it is unknown."""
    if not formula.strip() or len(formula) > _LONGEST:
        return None
    try:
        lines = _Parser(formula).rows("")
    except _UnknownError:
        return None
    text = "\n".join("".join(_joined(cell) for cell in row).strip() for row in lines)
    return unicodedata.normalize("NFC", text) if text.strip() else None


class _Parser:
    """Reads the tokens of a formula: commands, braces and single characters."""

    def __init__(self, formula: str) -> None:
        self._tokens: list[str] = re.findall(r"\\[A-Za-z]+\*?|\\.|[^\\]|\\", formula, re.DOTALL)
        self._next = 0
        self._depth = 0

    def rows(self, environment: str) -> list[list[list[_Atom]]]:
        """Rows of cells to the end of the environment; "": of the formula, with one cell a row."""
        rows: list[list[list[_Atom]]] = [[[]]]
        while (token := self._peek()) is not None:
            if token == "\\\\":
                self._take()
                rows.append([[]])
            elif token == "&" and environment:
                self._take()
                rows[-1].append([])
            elif token == "\\end":
                self._take()
                if not environment or self._raw() != environment:
                    raise _UnknownError
                return rows if rows[-1] != [[]] else rows[:-1]
            else:
                rows[-1][-1] += self._item()
        if environment:
            raise _UnknownError
        return rows

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self) -> str:
        token = self._peek()
        if token is None:
            raise _UnknownError
        self._next += 1
        return token

    def _skip_blanks(self) -> None:
        while (token := self._peek()) is not None and token.isspace():
            self._next += 1

    def _item(self) -> list[_Atom]:
        """The next atom with its sub- and superscripts; nothing for a blank or a command without meaning here."""
        atoms = self._atom()
        below, above = self._scripts()
        if not below and not above:
            return atoms
        if len(atoms) > 1:
            raise _UnknownError
        base = atoms[0] if atoms else _Atom("")
        wrapped = base.kind == "fraction" or (base.kind == "group" and len(base.text) > 1)
        text = f"({base.text})" if wrapped else base.text
        kind = "ordinary" if base.kind in ("group", "fraction") else base.kind
        return [_Atom(text + _script(below, below=True) + _script(above, below=False), kind)]

    def _scripts(self) -> tuple[str, str]:
        """The texts of the sub- and the superscript, "" without one."""
        below, above = "", ""
        while True:
            self._skip_blanks()
            token = self._peek()
            if token in ("\\limits", "\\nolimits"):
                self._take()
            elif token == "'":
                self._take()
                above += "′"
            elif token == "_" and not below:
                self._take()
                below = self._required()
            elif token == "^":
                self._take()
                above += self._required()
            elif token == "_":
                raise _UnknownError
            else:
                return below, above.replace("′′", "″")

    def _required(self) -> str:
        """The text of the next argument, which is not empty."""
        text = _joined(self._argument(), tight=True)
        if not text:
            raise _UnknownError
        return text

    def _argument(self) -> list[_Atom]:
        """The atoms of the next group without its braces, or the next token."""
        self._skip_blanks()
        if self._peek() == "{":
            return self._group()
        return self._atom()

    def _group(self) -> list[_Atom]:
        self._take()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _UnknownError
        atoms: list[_Atom] = []
        while self._peek() != "}":
            atoms += self._item()
        self._take()
        self._depth -= 1
        return atoms

    def _raw(self) -> str:
        """The text between the next braces."""
        self._skip_blanks()
        if self._take() != "{":
            raise _UnknownError
        text, depth = "", 1
        while True:
            token = self._take()
            depth += (token == "{") - (token == "}")
            if not depth:
                return text
            if token in "{}" or (token[0] == "\\" and token[1:] not in "%$&#_ {}"):
                raise _UnknownError
            text += token[-1]

    def _atom(self) -> list[_Atom]:
        if self._peek() in ("^", "_"):
            return []
        if self._peek() == "{":
            return [_Atom(_joined(self._group()), "group")]
        token = self._take()
        if token[0] != "\\":
            return _character(token)
        return self._command(token[1:].removesuffix("*"))

    def _command(self, name: str) -> list[_Atom]:
        tables: tuple[tuple[dict[str, str], Kind], ...] = (
            (symbols.ORDINARY, "ordinary"),
            (symbols.BINARY, "binary"),
            (symbols.RELATIONS, "relation"),
            (symbols.OPERATORS, "operator"),
            (symbols.OPENING, "open"),
            (symbols.CLOSING, "close"),
            (symbols.COMMAS, "comma"),
            (symbols.SPACES, "space"),
        )
        for table, kind in tables:
            if name in table:
                return [_Atom(table[name], kind)]
        if name in symbols.NAMED:
            return [_Atom(name, "operator")]
        if name in ("left", "right"):
            return self._delimiter("open" if name == "left" else "close")
        if name in symbols.DROPPED:
            return []
        if name in symbols.TEXTS:
            return [_Atom(self._raw())]
        if name in symbols.ACCENTS:
            return [self._accented(chr(int(symbols.ACCENTS[name], 16)))]
        if name in symbols.PLAIN_LETTERS or symbols.has_alphabet(name):
            return [self._lettered(name)]
        return self._structure(name)

    def _delimiter(self, kind: Kind) -> list[_Atom]:
        self._skip_blanks()
        token = self._take()
        if token == ".":
            return []
        atoms = _character(token) if token[0] != "\\" else self._command(token[1:])
        return [replace(atom, kind=kind) for atom in atoms]

    def _lettered(self, name: str) -> _Atom:
        text = _joined(self._argument(), tight=name not in ("boldsymbol", "bm", "pmb"))
        if name == "operatorname":
            return _Atom(text, "operator")
        if name in symbols.PLAIN_LETTERS:
            return _Atom(text)
        styled = symbols.letters(name, text)
        if styled is None:
            raise _UnknownError
        return _Atom(styled)

    def _accented(self, mark: str) -> _Atom:
        """The mark over one letter, which may have scripts."""
        text = _joined(self._argument(), tight=True)
        if not text[:1].isalnum() or not all(each in _SCRIPT_CHARACTERS for each in text[1:]):
            raise _UnknownError
        return _Atom(text[0] + mark + text[1:])

    def _structure(self, name: str) -> list[_Atom]:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            above, below = self._argument(), self._argument()
            return [_Atom(f"{_part(above)}/{_part(below, divisor=True)}", "fraction")]
        if name == "sqrt":
            return [self._root()]
        if name in ("binom", "dbinom", "tbinom"):
            above, below = _joined(self._argument()), _joined(self._argument())
            return [_Atom(f"({above} choose {below})")]
        if name in ("overset", "stackrel", "underset"):
            script, base = _joined(self._argument(), tight=True), self._argument()
            kind = base[0].kind if len(base) == 1 else "operator"
            return [_Atom(_joined(base) + _script(script, below=name == "underset"), kind)]
        if name == "boxed":
            return self._argument()
        if name == "pmod":
            return [_Atom(" ", "space"), _Atom(f"(mod {_joined(self._argument())})")]
        if name == "tag":
            return [_Atom(f"  ({self._raw()})")]
        if name == "not":
            negated = self._argument()
            if len(negated) != 1 or len(negated[0].text) != 1:
                raise _UnknownError
            return [replace(negated[0], text=negated[0].text + "\u0338")]
        if name == "begin":
            return self._environment()
        raise _UnknownError

    def _root(self) -> _Atom:
        self._skip_blanks()
        sign = "√"
        if self._peek() == "[":
            self._take()
            degree: list[_Atom] = []
            while self._peek() != "]":
                degree += self._item()
            self._take()
            order = _joined(degree, tight=True)
            signs = {"2": "√", "3": "∛", "4": "∜"}
            sign = signs[order] if order in signs else _script(order, below=False) + "√"
        return _Atom(sign + _part(self._argument(), divisor=True), "group")

    def _environment(self) -> list[_Atom]:
        name = self._raw()
        if name.removesuffix("*") not in (*_LINES, *_MATRICES, "cases"):
            raise _UnknownError
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _UnknownError
        rows = self.rows(name)
        self._depth -= 1
        if name.removesuffix("*") in _LINES:
            return [_Atom("\n".join(_joined([atom for cell in row for atom in cell]).strip() for row in rows))]
        cells = [[_joined(cell).strip() for cell in row] for row in rows]
        if name == "cases":
            return [_Atom("{ " + "; ".join(", ".join(cell.rstrip(",") for cell in row) for row in cells))]
        opening, closing = _MATRICES[name]
        return [_Atom(opening + "; ".join(" ".join(row) for row in cells) + closing)]


_LINES = ("aligned", "align", "gathered", "gather", "split", "equation")
_MATRICES = {"matrix": "[]", "bmatrix": "[]", "pmatrix": "()", "vmatrix": "||", "Bmatrix": "{}", "Vmatrix": "‖‖"}
_SCRIPT_CHARACTERS = frozenset((*symbols.SUPERSCRIPTS.values(), *symbols.SUBSCRIPTS.values()))
_CHARACTERS: dict[str, Kind] = {
    **dict.fromkeys("([", "open"),
    **dict.fromkeys(")]!", "close"),
    **dict.fromkeys("=<>:", "relation"),
    **dict.fromkeys("+-*", "binary"),
    **dict.fromkeys(",;", "comma"),
}


def _character(token: str) -> list[_Atom]:
    if token.isspace():
        return []
    if token in "{}&%#$`^_\\":
        raise _UnknownError
    if token == "~":
        return [_Atom(" ", "space")]
    return [_Atom("−" if token == "-" else token, _CHARACTERS.get(token, "ordinary"))]


def _script(text: str, *, below: bool) -> str:
    """Text as a sub- or superscript, as `_x` or `^(x)` where Unicode lacks a character."""
    if not text:
        return ""
    table = symbols.SUBSCRIPTS if below else symbols.SUPERSCRIPTS
    if all(character in table for character in text):
        return "".join(table[character] for character in text)
    bare = len(text) == 1 or (below and text.isalpha())
    return ("_" if below else "^") + (text if bare else f"({text})")


def _part(atoms: list[_Atom], *, divisor: bool = False) -> str:
    """A part of a fraction, in parentheses where it would read differently without."""
    text = _joined(atoms)
    single = len(atoms) == 1 or text.isdigit()
    if (" " in text or "/" in text or (divisor and not single)) and not _is_wrapped(text):
        return f"({text})"
    return text


def _is_wrapped(text: str) -> bool:
    return text[:1] == "(" and text[-1:] == ")" and not re.search(r"[()]", text[1:-1])


def _joined(atoms: list[_Atom], *, tight: bool = False) -> str:
    """The atoms with the spaces of TeX; `tight`, as in a script, only around operators' names."""
    text = ""
    left: _Atom | None = None
    for atom in atoms:
        first = left is None or left.kind in ("binary", "relation", "open", "comma")
        now = replace(atom, kind="open") if first and (atom.kind == "binary" or atom.text in "|‖") else atom
        if left is not None and not text.endswith((" ", "\n")) and _space_between(left, now, tight):
            text += " "
        text += now.text
        left = now
    return text


def _space_between(left: _Atom, right: _Atom, tight: bool) -> bool:
    kinds = (left.kind, right.kind)
    if "space" in kinds or not left.text or not right.text or right.text[0] in " \n":
        return False
    things = ("ordinary", "group", "fraction")
    if right.kind == "operator" and left.kind in (*things, "close"):
        return True
    if left.kind == "operator":
        return right.kind in (*things, "operator") or (not tight and right.kind in ("binary", "relation"))
    if tight:
        return False
    if re.search(r"[_^]\w+\Z", left.text) and right.kind in things:
        return True  # W_Q x, not W_Qx
    if left.kind == "comma":
        return not right.text[0].isdigit() or left.text == ";"
    if "fraction" in kinds:
        return right.kind not in ("close", "comma") and left.kind != "open" and right.text not in ".?"
    return "relation" in kinds or (left.kind != "open" and "binary" in kinds)
