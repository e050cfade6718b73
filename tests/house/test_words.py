"""Rules for words: first lines of docstrings, names of tests, and unique class names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.test_names import sources

FOLDERS = ("macllm", "tui", "models", "tests")
QUESTIONS = {"What", "Who", "Whether", "How", "Where", "Which"}
OBLIQUE = re.compile(r"test_(who|what|how|whether|where|which)_")
MOST_CHARS = 100


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, those below assignments included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        described = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            first = before is None and described
            if not first and not isinstance(before, ast.Assign | ast.AnnAssign):
                continue
            match statement:
                case ast.Expr(ast.Constant(str(text))) if text.strip():
                    yield statement.lineno, text


def first_lines(repository: Path) -> Iterator[tuple[str, str]]:
    for path in sources(repository, *FOLDERS):
        for line, text in docstrings(path):
            yield f"{path.relative_to(repository)}:{line}", text.strip().splitlines()[0]


def asks(first: str) -> bool:
    return first.split()[0].strip(",:;") in QUESTIONS


def test_no_test_name_begins_with_a_question_word(repository: Path) -> None:
    """The name of a test is a claim, which a question word only alludes to."""
    names = [
        f"{path.relative_to(repository)}:{node.lineno} {node.name}"
        for path in sources(repository, "tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and OBLIQUE.match(node.name)
    ]
    assert names == []


@pytest.mark.parametrize(
    ("name", "oblique"),
    [("test_what_is_saved", True), ("test_whatever_is_saved", False), ("test_it_says_what_is_saved", False)],
)
def test_question_words_are_recognized_at_the_beginning_of_test_names(name: str, oblique: bool) -> None:
    assert bool(OBLIQUE.match(name)) is oblique


def test_no_docstring_begins_with_a_question_word(repository: Path) -> None:
    assert [f"{place}: {first}" for place, first in first_lines(repository) if asks(first)] == []


def test_first_lines_of_docstrings_are_short(repository: Path) -> None:
    assert [f"{place}: {first}" for place, first in first_lines(repository) if len(first) > MOST_CHARS] == []


def test_a_class_name_is_used_once(repository: Path) -> None:
    names = Counter(
        node.name
        for path in sources(repository, "macllm", "tui")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_docstrings_of_modules_classes_functions_and_assignments_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""What."""\nX = 1\n"""Who."""\nclass C:\n    """How."""\n    def f(self):\n        """Where."""\n'
    )
    assert sorted(docstrings(path)) == [(1, "What."), (3, "Who."), (5, "How."), (7, "Where.")]
    assert asks("What: it is")
    assert not asks("Whatever it is")
