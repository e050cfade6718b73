"""Size limits of files, functions and parameter lists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import macllm

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 7


def sources(repository: Path) -> list[Path]:
    return sorted(path for top in ("macllm", "tui") for path in (repository / top).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Counted parameters: all, without the options of a public function (`macllm.generate`)."""
    public = function.name in macllm.__all__
    named = [*function.args.posonlyargs, *function.args.args, *([] if public else function.args.kwonlyargs)]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of lines, without those of the options of a public function."""
    first = function.body[0].lineno if function.name in macllm.__all__ else function.lineno
    return (function.end_lineno or 0) - first + 1


def test_a_file_has_at_most_400_lines(repository: Path) -> None:
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(repository)}
    assert {path: count for path, count in lines.items() if count > FILE_LINES} == {}


def test_a_function_has_at_most_60_lines(repository: Path) -> None:
    long = {
        f"{path}:{function.lineno} {function.name}": count
        for path in sources(repository)
        for function in functions(path)
        if (count := length(function)) > FUNCTION_LINES
    }
    assert long == {}


def test_a_function_has_at_most_7_parameters(repository: Path) -> None:
    wide = {
        f"{path}:{function.lineno} {function.name}": count
        for path in sources(repository)
        for function in functions(path)
        if (count := parameters(function)) > PARAMETERS
    }
    assert wide == {}
