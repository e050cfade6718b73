"""Declarations of threadgroup memory in a kernel's source, and those that Metal rejects."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .brackets import CLOSERS, OPENERS, around, parted, without_comments

REFUSED = {
    "initialised": "a variable in threadgroup memory takes no initializer",
    "global": "a variable outside of functions is constant",
    "member": "a member of a struct cannot be in threadgroup memory; its variable can",
    "alias": "an alias of a type in threadgroup memory is not supported: write threadgroup at the variable",
    "static": "a static variable must be constant",
    "unknown": "this threadgroup declaration is not supported",
}
"""Kinds of rejected declarations."""

_OTHERS = re.compile(
    r"\bstatic\b[^;{}()]*(?=[;={])"
    r"|\b(?:bool|u?char|u?short|u?int|u?long|half|bfloat|float)[234]?\s+\w+\s*(?:\[[^\]]*\]\s*)*(?=[;=])"
)
_WORD = re.compile(r"\bthreadgroup\b")
_BEFORE = re.compile(r"\s*(?:(?:const|volatile|static|constexpr)\b|alignas\s*\(([^()]*)\)|template\s*<[^<>]*>)")
_DECLARATOR = re.compile(r"\s*(?:const\b\s*)?(\w+)\s*((?:\[[^\[\]]*\]\s*)*)")
_CLASS = re.compile(r"\b(?:struct|class|union)\b[^;{}()=]*$")


@dataclass(frozen=True)
class Shared:
    """A declaration in text[begin:end]: its type, and names with their array sizes."""

    begin: int
    end: int
    type: str
    names: tuple[tuple[str, str], ...]
    alignment: str = ""


@dataclass(frozen=True)
class Refused:
    """A declaration that Metal rejects, or that the simulator does not support."""

    line: int
    kind: str
    text: str

    @property
    def rule(self) -> str:
        """Metal's objection."""
        return REFUSED[self.kind]

    def __str__(self) -> str:
        return f"kernel.metal:{self.line}: {self.rule}: {' '.join(self.text.split())}"


def declarations(text: str, *, everywhere: bool = False) -> list[Shared | Refused]:
    """Declarations of threadgroup variables, in order; pointers and references are not included.

    `everywhere` allows lines of a kernel outside of its function.
    """
    bare = re.sub(r"\[\[.*?\]\]", lambda found: " " * len(found[0]), without_comments(text), flags=re.DOTALL)
    bare = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", _blank_unless_shared, bare, flags=re.MULTILINE)
    return [one for found in _WORD.finditer(bare) if (one := _declared(bare, found.start(), everywhere))]


def refused(text: str, *, everywhere: bool = False) -> list[Refused]:
    """Declarations that would be in different memory on a GPU; `everywhere` as for `declarations`."""
    found = [one for one in declarations(text, everywhere=everywhere) if isinstance(one, Refused)]
    bare = without_comments(text)
    for other in _OTHERS.finditer(bare):
        begin = max(bare.rfind(mark, 0, other.start()) for mark in ";{}") + 1
        statement = bare[begin : other.end()]
        if re.search(r"\b(?:constant|constexpr|typedef|using|threadgroup|template|struct|operator)\b|#", statement):
            continue
        line = bare.count("\n", 0, other.start()) + 1
        if other[0].startswith("static"):
            found.append(Refused(line, "static", statement))
        elif not everywhere and statement.lstrip().startswith(other[0]) and not around(bare, other.start()):
            found.append(Refused(line, "global", statement))
    return found


def _blank_unless_shared(line: re.Match[str]) -> str:
    """Blanks for a preprocessor line, unless a macro declares a threadgroup variable."""
    kept = _WORD.search(line[0]) is not None and not re.search(r"\bthreadgroup\b[^*&]*[*&]", line[0])
    return line[0] if kept else re.sub(r"[^\n]", " ", line[0])


def _declared(bare: str, at: int, everywhere: bool) -> Shared | Refused | None:
    open_ = around(bare, at)
    if open_ and bare[open_[-1]] != "{":
        return None  # a pointer or reference in a parameter, cast or operand
    begin = max(bare.rfind(mark, 0, at) for mark in ";{}") + 1
    before = bare[begin:at]
    end = _end(bare, at)
    whole = bare[begin:end]
    line = bare.count("\n", 0, at) + 1
    if before.lstrip().startswith("#"):
        return Refused(line, "alias", before + bare[at:].partition("\n")[0])
    if re.search(r"\)\s*(?:const\s*)?$", before) and re.match(r"threadgroup\s*[{;]", bare[at:]):
        return None  # the qualifier of a member function
    if before.count("<") > before.count(">") or _points(bare[at + len("threadgroup") : end]):
        return None
    if re.match(r"\s*(?:typedef|using)\b", before):
        return Refused(line, "alias", whole)
    if open_ and _CLASS.search(bare[: open_[-1]]):
        return Refused(line, "member", whole)
    if not open_ and not everywhere:
        return Refused(line, "global", whole)
    prefix, alignment = before, ""
    while found := _BEFORE.match(prefix):
        prefix, alignment = prefix[found.end() :], found[1] or alignment
    return _variables(bare, (begin, at, end), prefix.strip(), alignment.strip()) or Refused(
        line, "initialised" if re.search(r"[={(]", bare[at:end]) else "unknown", whole
    )


def _variables(bare: str, place: tuple[int, int, int], prefix: str, alignment: str) -> Shared | None:
    """The variables of a declaration; None if it has any other part."""
    begin, at, end = place
    parts = parted(bare[at + len("threadgroup") : end])
    first = re.fullmatch(r"(.*?)(\w+\s*(?:\[[^\[\]]*\]\s*)*)", f"{prefix} {parts[0]}".strip(), re.DOTALL)
    if first is None or not first[1].strip() or "=" in first[1] or bare[end : end + 1] != ";":
        return None
    kind = re.sub(r"\b(?:const|volatile|static|constexpr)\b", "", first[1]).strip()
    names = []
    for part in (first[2], *parts[1:]):
        found = _DECLARATOR.fullmatch(part)
        if found is None:
            return None
        names.append((found[1], found[2].strip()))
    return Shared(begin, end + 1, kind, tuple(names), alignment)


def _end(bare: str, at: int) -> int:
    """Offset of a declaration's semicolon, or of the brace that begins a function's body."""
    depth = 0
    for i in range(at, len(bare)):
        if bare[i] in OPENERS:
            if bare[i] == "{" and depth == 0 and bare[:i].rstrip().endswith(")"):
                return i
            depth += 1
        depth -= bare[i] in CLOSERS
        if depth < 0 or (depth == 0 and bare[i] == ";"):
            return i
    return len(bare)


def _points(tail: str) -> bool:
    """True if the declarator after the word is a pointer or a reference."""
    plain = tail
    while (less := re.sub(r"<[^<>]*>", " ", plain)) != plain:
        plain = less
    return (
        re.match(r"[\w\s:,]*(?:[*&]|\(\s*[*&])", plain) is not None and re.match(r"[^,;=\[{]*[*&]", plain) is not None
    )
