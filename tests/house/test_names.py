"""Rules for names: no empty names, no model families under nn/ and ops/, nothing unfinished."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

EMPTY_MODULES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "tools"}
EMPTY_CLASS = re.compile(r"(Manager|Handler|Helper|Utils?)$|^Base[A-Z]|[a-z]Base$")
FAMILIES = re.compile(
    r"(?<![a-z])(llama|mistral|mixtral|qwen|gemma|phi[34]|olmo|gpt-?2|bert|roberta|bart|marian|t5|model_type)(?![a-z])",
    re.IGNORECASE,
)
UNTYPED_MODEL = re.compile(r"\bmodel: Any\b|\b(get|has)attr\((self\.)?_?(model|lm|spec|info)\b")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|pragma: no cover|NotImplementedError|xfail")


def sources(repository: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (repository / folder).rglob("*.py"))


def lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_module_has_an_empty_name_such_as_utils(repository: Path) -> None:
    assert [path for path in sources(repository, "macllm", "tui", "tests") if path.stem in EMPTY_MODULES] == []


def test_no_class_has_an_empty_name_such_as_manager(repository: Path) -> None:
    classes = [
        f"{path}: {node.name}"
        for path in sources(repository, "macllm", "tui")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and EMPTY_CLASS.search(node.name)
    ]
    assert classes == []


def test_nn_and_ops_name_no_model_family(repository: Path) -> None:
    native = [path for suffix in ("*.metal", "*.cpp", "*.h") for path in (repository / "macllm/ops").rglob(suffix)]
    assert lines_with(FAMILIES, [*sources(repository, "macllm/nn", "macllm/ops"), *native]) == []


@pytest.mark.parametrize("text", ["if config.model_type:", "# as Llama does", "qwen3_moe", "T5's buckets", "GPT-2"])
def test_family_names_are_recognized(text: str) -> None:
    assert FAMILIES.search(text)


@pytest.mark.parametrize("text", ["bertha", "smart5x", "philosophy", "barter"])
def test_words_that_contain_a_family_name_are_allowed(text: str) -> None:
    assert not FAMILIES.search(text)


def test_no_todo_stub_or_expected_failure_is_left(repository: Path) -> None:
    here = Path(__file__).resolve()
    everything = [path for path in sources(repository, "macllm", "tui", "tests", "models") if path.resolve() != here]
    assert lines_with(UNFINISHED, everything) == []


def test_models_are_typed_and_read_without_getattr(repository: Path) -> None:
    assert lines_with(UNTYPED_MODEL, sources(repository, "macllm", "tui")) == []


@pytest.mark.parametrize("text", ["def f(model: Any)", 'getattr(model, "spec", None)', 'hasattr(self._model, "info")'])
def test_untyped_models_are_recognized(text: str) -> None:
    assert UNTYPED_MODEL.search(text)


def test_no_two_test_files_have_one_name(repository: Path) -> None:
    """Folders of tests are no packages, so that pytest takes the second file of a name for the first."""
    names = Counter(path.name for path in sources(repository, "tests") if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
