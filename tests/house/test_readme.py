"""README is true: its tree is the tree, its commands exist, its Python runs.

`python tests/house/test_readme.py` writes the tree and the help text anew. A file's line is the first sentence of
its docstring or first comment; where it has none, README's line is kept.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from macllm.cli import COMMANDS, program

REPOSITORY = Path(__file__).resolve().parent.parent.parent
README = REPOSITORY / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NATIVE = {".cpp", ".h", ".metal"}
BUILT = {"__pycache__", ".DS_Store"}


def blocks(language: str) -> list[str]:
    return [body for tag, body in BLOCK.findall(README.read_text(encoding="utf-8")) if tag == language]


def documented_tree() -> dict[str, str]:
    """Path to line, as the README's tree has it."""
    (body,) = blocks("tree")
    assert "\t" not in body
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in body.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, text = line.strip().partition(" ")
        folders[depth:] = [name]
        found["".join(folders)] = text.strip()
    return found


def paths() -> list[Path]:
    """Every file and folder of macllm/ and tui/, folders before what is in them, files before folders."""

    def walk(folder: Path) -> list[Path]:
        children = [child for child in folder.iterdir() if child.name not in BUILT and child.suffix != ".so"]
        children.sort(key=lambda child: (child.is_dir(), child.name))
        return [folder, *(found for child in children for found in (walk(child) if child.is_dir() else [child]))]

    return [path for top in ("macllm", "tui") for path in walk(REPOSITORY / top)]


def key(path: Path) -> str:
    return str(path.relative_to(REPOSITORY)) + ("/" if path.is_dir() else "")


def claim(path: Path) -> str | None:
    """The first sentence of a module's or a package's docstring, or of a source's first comment; None without one."""
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file() or path.name == "__init__.py":
        return None
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif source.suffix in NATIVE:
        comment = itertools.takewhile(lambda line: line.startswith("//"), text.splitlines())
        text = "\n".join(line.lstrip("/ ") for line in comment)
    else:
        return None
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!\bet al)\.(?=\s|$)", paragraph)[0] or None


def written_tree() -> str:
    """The tree as README should have it."""
    before = documented_tree()
    lines = []
    for path in paths():
        if path.name == "__init__.py":
            continue  # its folder's line tells of it
        text = claim(path) or before.get(key(path)) or "?"
        indent = "  " * (len(path.relative_to(REPOSITORY).parts) - 1)
        name = path.name + ("/" if path.is_dir() else "")
        lines.append(f"{indent + name:<24} {text}")
    return "\n".join(lines) + "\n"


def help_text() -> str:
    result = subprocess.run(
        [sys.executable, "-m", "macllm", "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return result.stdout


def rewrite() -> None:
    text = README.read_text(encoding="utf-8")
    (tree,) = blocks("tree")
    text = text.replace(f"```tree\n{tree}```", f"```tree\n{written_tree()}```")
    (shown,) = [body for body in blocks("console") if body.startswith("$ macllm --help\n")]
    text = text.replace(shown, f"$ macllm --help\n{help_text()}")
    README.write_text(text, encoding="utf-8")


def test_the_tree_is_the_tree() -> None:
    (tree,) = blocks("tree")
    assert tree == written_tree(), "python tests/house/test_readme.py writes it anew"


def test_every_line_of_the_tree_says_something() -> None:
    assert [path for path, text in documented_tree().items() if len(text) < 10] == []


def test_the_help_is_the_help() -> None:
    (shown,) = [body for body in blocks("console") if body.startswith("$ macllm --help\n")]
    assert shown == f"$ macllm --help\n{help_text()}"


def commands() -> list[list[str]]:
    """Every call of macllm in README's shell blocks, as words; what a pipe or a && joins is taken apart."""
    found = []
    for body in blocks("sh"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            calls: list[list[str]] = [[]]
            for word in words:
                if word in ("|", "&&", "||", ">", "<"):
                    calls.append([])
                else:
                    calls[-1].append(word)
            found += [call[1:] for call in calls if call and Path(call[0]).name == "macllm"]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_readme_is_one_that_macllm_takes(words: list[str]) -> None:
    group: click.Command = program
    while isinstance(group, click.Group):
        found = group.get_command(click.Context(group), words.pop(0))
        assert found is not None
        group = found
    group.make_context("macllm", list(words))


def test_the_first_two_blocks_install_and_test() -> None:
    install, test = blocks("sh")[:2]
    assert "macllm chat" in install
    assert "pytest" in test
    assert all(command.startswith("python3 -m venv .venv && ") for command in (install, test))


@pytest.mark.parametrize("body", blocks("python"), ids=lambda body: body.splitlines()[0])
def test_python_of_the_readme_runs(body: str, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_every_command_is_mentioned() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"macllm {name}" not in text] == []


if __name__ == "__main__":
    rewrite()
