"""An op always answers: None for "no kernel serves" does not leave `ops/`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.test_names import sources

OPS = "macllm.ops."
Function = ast.FunctionDef | ast.AsyncFunctionDef


def optional(repository: Path) -> set[str]:
    """Functions and methods of `ops/` that take or give arrays, and whose results may be or hold None."""
    found = set[str]()
    for path in sources(repository, "macllm/ops"):
        module = ".".join(path.relative_to(repository).with_suffix("").parts)
        found |= {f"{module}.{name}" for name, function in _functions(path) if _answers_arrays_or_none(function)}
    return found


def _functions(path: Path) -> Iterator[tuple[str, Function]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body if isinstance(each, Function))


def _answers_arrays_or_none(function: Function) -> bool:
    hints = [each.annotation for each in ast.walk(function.args) if isinstance(each, ast.arg) and each.annotation]
    result = ast.unparse(function.returns) if function.returns else ""
    on_arrays = any("mx.array" in hint for hint in [*map(ast.unparse, hints), result])
    return on_arrays and ("| None" in result or "None |" in result or "Optional[" in result)


def used(repository: Path) -> set[str]:
    """Functions and methods of `ops/` that modules outside of it may call.

    A method may be called where its class is imported and its name is read from anything.
    """
    found = set[str]()
    for path in sources(repository, "macllm", "tui"):
        if not path.is_relative_to(repository / "macllm" / "ops"):
            found |= _used(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _used(tree: ast.Module) -> set[str]:
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and f"{node.module}.".startswith(OPS):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {"__call__"}
    return {*imported.values(), *(f"{name}.{each}" for name in imported.values() for each in attributes)}


def test_no_op_that_is_called_from_outside_returns_none(repository: Path) -> None:
    assert optional(repository) & used(repository) == set()


def test_within_ops_kernels_that_may_not_serve_are_seen(repository: Path) -> None:
    assert {"macllm.ops.fused_linear.linear", "macllm.ops.flash.flash"} <= optional(repository)
    assert {"macllm.ops.linear.linear", "macllm.ops.sampling.Draw.__call__"} <= used(repository)


@pytest.mark.parametrize(
    ("op", "caller"),
    [
        ("def f(x: mx.array) -> mx.array | None: ...", "from macllm.ops.op import f"),
        ("def f(x: mx.array) -> 'tuple[mx.array, int | None]': ...", "from macllm.ops.op import f as g"),
        ("def f(x: mx.array) -> None | list: ...", "from macllm.ops import op\ny = op.f(x)"),
        ("class Draw:\n    def __call__(self, x: mx.array) -> mx.array | None: ...", "from macllm.ops.op import Draw"),
        ("class C:\n    def f(self) -> mx.array | None: ...", "def g():\n    from macllm.ops.op import C\n    C().f()"),
    ],
)
def test_an_op_that_may_not_answer_is_seen_where_it_is_called(op: str, caller: str, tmp_path: Path) -> None:
    for name, text in (("ops/op.py", op), ("nn/caller.py", ""), ("ops/caller.py", caller)):
        path = tmp_path / "macllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(optional(tmp_path)) == 1
    assert not optional(tmp_path) & used(tmp_path)
    (tmp_path / "macllm/nn/caller.py").write_text(caller)
    assert optional(tmp_path) <= used(tmp_path)
