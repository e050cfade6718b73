"""Lint for code that Metal's compiler rejects or treats differently and a C++ compiler accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .brackets import without_comments
from .memories import refused

SCALARS = (
    r"(?:bool|char|uchar|short|ushort|int|uint|long|ulong|half|bfloat|float|size_t|"
    r"int32_t|uint32_t|int64_t|uint64_t|float16_t|bfloat16_t)"
)
SPACE = r"(?:device|constant|threadgroup|thread|metal::thread)"
TRANSCENDENTAL = (
    "exp",
    "exp2",
    "exp10",
    "log",
    "log2",
    "log10",
    "sin",
    "cos",
    "tan",
    "tanh",
    "sinh",
    "cosh",
    "pow",
    "sqrt",
    "rsqrt",
)
TAKEN = ("log1p", "hypot", "Limits", "ceildiv", "simd_shuffle", "elem_to_loc")
"""Function names in the text that MLX puts before a kernel's source."""

WORDS = {
    "double": "there is no double",
    "goto": "there is no goto",
    "virtual": "there are no virtual functions",
    "dynamic_cast": "there is no dynamic_cast",
    "typeid": "there is no typeid",
    "new": "nothing is allocated",
    "delete": "nothing is allocated",
    "throw": "there are no exceptions",
    "try": "there are no exceptions",
    "catch": "there are no exceptions",
    "thread_local": "there is no thread_local",
    "asm": "there is no assembler",
    "std": "the standard library is metal::",
    "noexcept": "there are no exceptions",
}
PATTERNS = {
    r"\blong\s+long\b": "there is no long long",
    r"\[[&=]?\]\s*\(": "lambdas need Metal 3.2",
    r"\bauto\s*&?\s*\[": "structured bindings need C++17",
    r"\(\s*\.\.\.\s*[-+*|&,]|[-+*|&,]\s*\.\.\.\s*\)": "fold expressions need C++17",
    r"(?<![\w.])(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])": "a number without f or h is a double",
    r"\b(?:" + "|".join(TAKEN) + r")\s*\([^;]*\)\s*\{": "MLX's own text has a function of this name",
}


@dataclass(frozen=True)
class Finding:
    """A line that breaks a rule."""

    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.rule}: {self.text.strip()}"


def findings(text: str, source: str = "") -> list[Finding]:
    """Every rule that a kernel's text breaks; `source` is the part of it that MLX wraps into a kernel."""
    found = [
        Finding(n, "only ASCII reaches the compiler", line)
        for n, line in enumerate(text.splitlines(), 1)
        if not line.isascii()
    ]
    bare = without_comments(text)
    lines = bare.splitlines()
    for number, line in enumerate(lines, 1):
        found += [Finding(number, rule, line) for rule in _of_line(line)]
    found += [Finding(one.line, one.rule, one.text) for one in refused(text, everywhere=True)]
    found += [Finding(0, f"{name} calls itself", name) for name in _recursive(bare)]
    if source:
        found += [Finding(0, rule, source) for rule in _of_source(source)]
    return found


def without_prefixes(text: str) -> str:
    """The text with the lines that macllm's files mark as a kernel's source (`//:`) as code."""
    return re.sub(r"^//:", "   ", text, flags=re.MULTILINE)


def _of_line(line: str) -> Iterator[str]:
    if line.lstrip().startswith("#"):
        return
    for word, why in WORDS.items():
        if re.search(rf"\b{word}\b", line):
            yield why
    for pattern, why in PATTERNS.items():
        if re.search(pattern, line):
            yield why
    for name in TRANSCENDENTAL:
        if re.search(rf"(?<!precise::)(?<!fast::)(?<![\w.]){name}\s*\(", line):
            yield f"{name} is precise:: or fast::"
    if re.search(rf"(?<!{'device '})(?:^|[(,;{{]|\bconst\s)\s*(?:const\s+)?{SCALARS}\d?\s*[*&]\s*\w+", line):
        declared = re.finditer(rf"((?:{SPACE}|const|volatile)\s+)*{SCALARS}\d?\s*[*&]\s*\w+", line)
        if any(not re.search(SPACE, one[0]) for one in declared):
            yield "a pointer or reference needs an address space"


def _of_source(source: str) -> Iterator[str]:
    attributes = re.findall(r"\b(?:thread|threads|threadgroup|threadgroups|simdgroup|simdgroups)_\w+\b", source)
    if not attributes:
        yield "without any attribute MLX writes a parameter list that does not compile"
    if {"thread_execution_width", "threads_per_simdgroup"} <= set(attributes):
        yield "thread_execution_width and threads_per_simdgroup are not taken together"


def _recursive(text: str) -> list[str]:
    """Functions that call themselves, directly or through others."""
    bodies: dict[str, str] = {}
    for found in re.finditer(r"\b(\w+)\s*\([^;{}()]*(?:\([^()]*\)[^;{}()]*)*\)\s*(?:const\s*)?(?:thread\s*)?\{", text):
        if found[1] not in ("if", "for", "while", "switch"):
            bodies[found[1]] = bodies.get(found[1], "") + _block(text, found.end())
    calls = {
        name: {other for other in bodies if re.search(rf"\b{other}\s*(?:<[^;()]*>)?\s*\(", body)}
        for name, body in bodies.items()
    }

    def reaches(name: str) -> bool:
        seen: set[str] = set()
        waiting = list(calls[name])
        while waiting:
            one = waiting.pop()
            if one == name:
                return True
            if one not in seen:
                seen.add(one)
                waiting += calls[one]
        return False

    return [name for name in bodies if reaches(name)]


def _block(text: str, begin: int) -> str:
    depth, at = 1, begin
    while at < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return text[begin:at]
