"""Rewriting of Metal syntax that C++ lacks: vector swizzles and function constants."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .brackets import around, closed

_COMPONENTS = ("xyzw", "rgba")
_HALVES = ("lo", "hi", "even", "odd")
_PART = re.compile(r"(\.|->)\s*([xyzw]{2,4}|[rgba]{2,4}|lo|hi|even|odd)\b(?!\s*\()")
_WRITTEN = re.compile(r"\s*(?:=(?!=)|[-+*/%&|^]=|<<=|>>=)")
_SET = re.compile(
    r"\b(?:(?:const|constant|constexpr|static|[A-Z][A-Z_]+)\s+)+([\w:]+)\s+(\w+)\s*"
    r"\[\[\s*function_constant\((\d+)\)\s*\]\]\s*;"
)
_CLASS = re.compile(r"\b(?:struct|class|union)\b[^;{}()=]*$")
_NUMBER = r"\s*[-+]?(?:true|\d+\.?\d*[fhuU]?|\.\d+[fh]?)\s*"
_TYPE = r"(?:bool|char|uchar|short|ushort|int|uint|long|ulong|half|bfloat|float)[234]"
_ONE_IN_BRACES = re.compile(rf"\b{_TYPE}(?:\s+\w+\s*=?)?\s*\{{({_NUMBER})\}}")

_SPACE = r"\b(?:device|constant|threadgroup|thread)\b(?!\s*\()"

Constants = Mapping[int, bool | int | float]
_LITERAL = re.compile(r"(?<![\w.])((?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)([hH])?(?![\w.])")


def with_parts(bare: str) -> str:
    """Swizzles (`.xy`, `.bgra`, `.hi`) as calls: a vector when read, element references when written."""
    members = {word for word in {found[2] for found in _PART.finditer(bare)} if _is_member(bare, word)}

    def call(found: re.Match[str]) -> str:
        if found[2] in members:
            return found[0]
        written = "set_" if _WRITTEN.match(bare, found.end()) else ""
        if found[2] in _HALVES:
            return f"{found[1]}{written}{found[2]}()"
        (letters,) = (one for one in _COMPONENTS if set(found[2]) <= set(one))
        places = ", ".join(str(letters.index(letter)) for letter in found[2])
        return f"{found[1]}template {written}parts<{places}>()"

    return _PART.sub(call, bare)


def with_literals(bare: str) -> str:
    """Floating-point literals as Metal reads them: float without a suffix, half with h, never double."""
    return _LITERAL.sub(lambda found: f"half({found[1]}f)" if found[2] else f"{found[1]}f", bare)


def _is_member(bare: str, word: str) -> bool:
    """True if a struct in the text has a member of this name."""
    for found in re.finditer(rf"(?<![.>\w])(?<!->){word}\s*[;,=\[{{]", bare):
        open_ = around(bare, found.start())
        if open_ and bare[open_[-1]] == "{" and _CLASS.search(bare[: open_[-1]]):
            return True
    return False


def with_constants(bare: str, values: Constants) -> str:
    """Function constants with their values; reading one without a value is a fault."""
    names: dict[str, bool] = {}

    def constant(found: re.Match[str]) -> str:
        kind, name, number = found.groups()
        names[name] = int(number) in values
        if names[name]:
            value = values[int(number)]
            return f"constexpr {kind} {name} = {kind}({str(value).lower()});"
        return f'constexpr simulator::Unset<{kind}> {name}{{"{name}"}};'

    bare = _SET.sub(constant, bare)
    for name, known in names.items():
        bare = re.sub(rf"\bis_function_constant_defined\(\s*{name}\s*\)", str(known).lower(), bare)
    return bare


def with_any_constants(bare: str) -> str:
    """Function constants with arbitrary values, for type checks only."""
    bare = re.sub(r"\bis_function_constant_defined\(\s*\w+\s*\)", "true", bare)
    return _SET.sub(lambda found: f"constant constexpr {found[1]} {found[2]} = {found[1]}(1);", bare)


def without_spaces(bare: str) -> str:
    """The text without address spaces; `constant` becomes `const`.

    Of definitions that differ only in address spaces, one is left.
    """
    bare = _without_twins(bare)
    bare = re.sub(r"\b(?:const\s+constant|constant\s+const|constant(?!\s+constexpr))\b", "const", bare)
    return re.sub(_SPACE, "", bare)


def _without_twins(bare: str) -> str:
    seen: set[tuple[int, str]] = set()
    for found in re.finditer(r"([^;{}]*)([;{}])", bare):
        if found[2] != "{" or not re.search(_SPACE, found[1]):
            continue
        end = closed(bare, found.end() - 1) + 1
        end += bare[end : end + 1] == ";"
        whole = bare[found.start() : end]
        if re.match(r"\s*(?:if|for|while|switch|else)\b", whole):
            continue
        open_ = around(bare, found.start())
        key = (open_[-1] if open_ else -1, " ".join(re.sub(_SPACE, " ", whole).split()))
        if key in seen:
            bare = bare[: found.start()] + re.sub(r"[^\n]", " ", whole) + bare[end:]
        seen.add(key)
    return bare


def unclear(bare: str) -> list[str]:
    """Vectors initialized with one number in braces, which Metal's specification leaves open."""
    return [
        f"one number in braces for more than one component: {found[0]}"
        for found in _ONE_IN_BRACES.finditer(bare)
        if float(found[1].strip(" fhuU+-tre") or 1) != 0
    ]
