"""Import circles in the packages, and imports in `ops/` from launchers to ops.

Imports anywhere in a file count: for type checkers only, within functions, and by name (`import_module`, and texts
"module:function" for child processes and engines).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

FOLDERS = {"macllm": "macllm", "macllm_tui": "tui"}
Graph = dict[str, set[str]]


def sources(repository: Path) -> dict[str, Path]:
    """Module -> file."""
    found: dict[str, Path] = {}
    for top, folder in FOLDERS.items():
        for path in sorted((repository / folder).rglob("*.py")):
            names = [top, *path.relative_to(repository / folder).with_suffix("").parts]
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def imports(repository: Path) -> Graph:
    """Module -> modules that it imports, without the packages that Python imports before a module."""
    files = sources(repository)
    return {name: {other for other in _named(name, path, files) if other != name} for name, path in files.items()}


def _named(module: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield from [name for name in (f"{base}.{alias.name}", base) if name in files][:1]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = _named_in_text(node.value)
            yield from [name] if name in files else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            yield from _by_name(node.args[0], package, files)


def _absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    base = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*base, *filter(None, [name.lstrip(".")])])


def _named_in_text(text: str) -> str | None:
    """Module of a text such as "macllm.room.file" or "macllm.room.file:function"."""
    match = re.fullmatch(r"((?:macllm|macllm_tui)(?:\.\w+)+)(?::\w+)?", text)
    return match[1] if match else None


def _by_name(argument: ast.expr, package: str, files: Mapping[str, Path]) -> Iterator[str]:
    """Modules that `import_module` may import: one, or any beside the caller; other names are literals."""
    if isinstance(argument, ast.Constant):
        yield from {_absolute(str(argument.value), package)} & files.keys()
    elif isinstance(argument, ast.JoinedStr) and re.match(r"f['\"](\.|\{__name__\}\.)", ast.unparse(argument)):
        yield from (name for name in files if name.rpartition(".")[0] == package)


def circles(graph: Graph) -> set[frozenset[str]]:
    """Sets of modules that import each other, directly or through others."""
    reach = {name: _reached(name, graph) for name in graph}
    rings = (frozenset({name, *(other for other in reach[name] if name in reach[other])}) for name in graph)
    return {ring for ring in rings if len(ring) > 1}


def _reached(name: str, graph: Graph) -> set[str]:
    reached, waiting = set[str](), [name]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def upward(graph: Graph) -> set[tuple[str, str]]:
    """Imports in `ops/` from launchers (metal/, cpu/, dispatch) to ops. A value imports only values."""
    ops = {name: {other for other in graph[name] if _in_ops(other)} for name in graph if _in_ops(name)}
    launchers = {name for name in ops if name.split(".")[2] in ("metal", "cpu", "dispatch")}
    values = set[str]()
    while new := {name for name, others in ops.items() if others <= values} - launchers - values:
        values |= new
    return {(name, other) for name in launchers for other in ops[name] - launchers - values}


def _in_ops(name: str) -> bool:
    return name.startswith("macllm.ops.")


def test_the_packages_have_no_import_circles(repository: Path) -> None:
    assert circles(imports(repository)) == set()


def test_launchers_of_ops_import_no_ops(repository: Path) -> None:
    assert upward(imports(repository)) == set()


IMPORTS = {
    "plainly": "import macllm.room.b",
    "from": "from macllm.room.b import x",
    "relatively": "from .b import x",
    "from the package": "from . import b",
    "from above": "from ..room import b",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import X",
    "within a function": "def f():\n    from .b import x",
    "by name": "from importlib import import_module\nimport_module('macllm.room.b')",
    "by a relative name": "import importlib\nimportlib.import_module('.b', __package__)",
    "as text": "ChildProcess('macllm.room.b:run')",
}


def tree(root: Path, texts: Mapping[str, str], packages: Iterable[str] = ("macllm", "macllm/room")) -> Path:
    """A source tree of these files."""
    for name, text in {**{f"{package}/__init__.py": "" for package in packages}, **texts}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("kind", IMPORTS)
def test_circles_through_every_kind_of_import_are_found(tmp_path: Path, kind: str) -> None:
    texts = {"macllm/room/a.py": IMPORTS[kind], "macllm/room/b.py": "import macllm.room.c", "macllm/room/c.py": ""}
    folder = tree(tmp_path, texts)
    assert circles(imports(folder)) == set()
    (folder / "macllm/room/c.py").write_text("from macllm.room import a\n")
    assert circles(imports(folder)) == {frozenset({"macllm.room.a", "macllm.room.b", "macllm.room.c"})}


def test_a_package_that_imports_its_modules_by_name_is_in_a_circle_with_its_importer(tmp_path: Path) -> None:
    chooser = "from importlib import import_module\ndef get(name):\n    return import_module(f'.{name}', __name__)\n"
    folder = tree(tmp_path, {"macllm/room/__init__.py": chooser, "macllm/room/a.py": "", "macllm/room/b.py": ""})
    assert circles(imports(folder)) == set()
    (folder / "macllm/room/b.py").write_text("from macllm import room\n")
    assert circles(imports(folder)) == {frozenset({"macllm.room", "macllm.room.b"})}


def test_a_launchers_import_of_an_op_is_found_and_one_of_a_value_is_allowed(tmp_path: Path) -> None:
    texts = {
        "macllm/ops/value.py": "",
        "macllm/ops/more.py": "from .value import V",
        "macllm/ops/dispatch.py": "",
        "macllm/ops/op.py": "from . import dispatch\nfrom .metal import launcher",
        "macllm/ops/metal/launcher.py": "from macllm.ops.more import M",
    }
    folder = tree(tmp_path, texts, ("macllm", "macllm/ops", "macllm/ops/metal"))
    assert upward(imports(folder)) == set()
    (folder / "macllm/ops/metal/launcher.py").write_text("def f():\n    from macllm.ops import op\n")
    assert upward(imports(folder)) == {("macllm.ops.metal.launcher", "macllm.ops.op")}
