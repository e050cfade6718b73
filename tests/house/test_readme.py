"""README against the source: tree, help, commands, Python code, links, families and variables.

`python tests/house/test_readme.py` rewrites the tree and the help text. The tree has a line for each folder and for
the files of `SHOWN`. A line is the first sentence of the docstring; a folder without one keeps README's line.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from macllm.cli import COMMANDS, program
from macllm.families import FAMILIES

REPOSITORY = Path(__file__).resolve().parent.parent.parent
README = REPOSITORY / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = (README, REPOSITORY / "models" / "CPU.md", REPOSITORY / "models" / "METAL.md")
SOURCES = {".py", ".cpp", ".h", ".metal"}
SHOWN = {
    "macllm/adapter/",
    "macllm/checkpoint.py",
    "macllm/errors.py",
    "macllm/generation/contract.py",
    "macllm/generation/request.py",
    "macllm/nn/protocol.py",
    "macllm/nn/spec.py",
    "macllm/nn/transformer.py",
    "macllm/ops/dispatch.py",
    "macllm/train/loop.py",
    "tui/app.py",
}
"""Files that the tree lists besides folders: entry points for readers."""
TREE_LINES = 56
WIDTH = 120
FAMILY_NAMES = {
    "bart": "BART",
    "bert": "BERT",
    "big_bird": "BigBird",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 2 and 3",
    "gpt2": "GPT-2",
    "llama": "Llama 2, 3",
    "llama4": "Llama 2, 3 and 4",
    "longformer": "Longformer",
    "marian": "Marian",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "mpt": "MPT",
    "olmo2": "OLMo 2",
    "phi3": "Phi-3 and Phi-4-mini",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 2 and 3 (dense",
    "qwen3_moe": "mixture of experts",
    "roberta": "RoBERTa",
    "t5": "T5",
}
"""Modules of families other than macllm's own, and their names in README."""


def blocks(language: str) -> list[str]:
    return [body for tag, body in BLOCK.findall(README.read_text(encoding="utf-8")) if tag == language]


def documented_tree() -> dict[str, str]:
    """Path -> line of README's tree."""
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
    """Source folders of macllm/ and tui/ and the files of `SHOWN`, each folder before its contents."""

    def walk(folder: Path) -> list[Path]:
        children = [child for child in folder.iterdir() if key(child) in SHOWN or holds_sources(child)]
        children.sort(key=lambda child: (child.is_dir(), child.name))
        return [folder, *(found for child in children for found in (walk(child) if child.is_dir() else [child]))]

    return [path for top in ("macllm", "tui") for path in walk(REPOSITORY / top)]


def holds_sources(path: Path) -> bool:
    return path.is_dir() and any(child.suffix in SOURCES for child in path.iterdir())


def key(path: Path) -> str:
    return str(path.relative_to(REPOSITORY)) + ("/" if path.is_dir() else "")


def claim(path: Path) -> str | None:
    """The first sentence of a module's or a package's docstring; None without one."""
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        return None
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!\bet al)\.(?=\s|$)", paragraph)[0] or None


def written_tree() -> str:
    """The tree as README should have it."""
    before = documented_tree()
    lines = []
    for path in paths():
        text = claim(path) or before.get(key(path)) or "?"
        indent = "  " * (len(path.relative_to(REPOSITORY).parts) - 1)
        name = path.name + ("/" if path.is_dir() else "")
        lines.append(shortened(f"{indent + name:<24} {text}"))
    return "\n".join(lines) + "\n"


def shortened(line: str) -> str:
    """The line, cut after the last clause that fits into the width."""
    while len(line) > WIDTH:
        line = line[: max(line.rfind(mark) for mark in (": ", "; "))] if ": " in line else line[: line.rindex(", ")]
    return line


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


def test_the_tree_in_readme_matches_the_source() -> None:
    (tree,) = blocks("tree")
    assert tree == written_tree(), "python tests/house/test_readme.py rewrites it"


def test_every_line_of_the_tree_has_a_description() -> None:
    assert [path for path, text in documented_tree().items() if len(text) < 10] == []


def test_the_tree_has_a_line_for_each_folder_and_fits_on_a_page() -> None:
    lines = documented_tree()
    assert len(lines) <= TREE_LINES
    assert set(lines) >= SHOWN


def test_no_line_of_the_first_screen_is_longer_than_120_characters() -> None:
    first_screen = README.read_text(encoding="utf-8").partition("## Five minutes")[0]
    assert [line for line in first_screen.splitlines() if len(line) > WIDTH] == []


def test_the_architecture_boxes_follow_the_order_of_the_layers() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    layers = [
        [name.strip().removeprefix("macllm.") for name in layer.split("|") if "(" not in name]
        for layer in settings["tool"]["importlinter"]["contracts"][0]["layers"]
    ]
    place = {name: floor for floor, names in enumerate(layers) for name in names}
    (drawing,) = [body for body in blocks("text") if "┌" in body]
    boxes = [line.split("│")[1].replace(",", " ").split() for line in drawing.splitlines() if line.startswith("│")]
    shown = [name for box in boxes for name in box]
    assert [place[name] for name in shown] == sorted(place[name] for name in shown)
    assert set(place) - set(shown) == {"child", "files", "units", "visible", "errors"}
    assert len(boxes) == 8


def test_every_family_is_named_and_counted() -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    modules = {module for module, _ in FAMILIES.values()} - {"own"}
    assert set(FAMILY_NAMES) == modules
    assert [name for name in FAMILY_NAMES.values() if name not in text] == []
    assert f"{len(modules)} model families" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_variable_of_macllm_is_documented_and_every_documented_one_is_read() -> None:
    name = re.compile(r"\bMACLLM_[A-Z_]+\b")
    sources = [path for top in ("macllm", "tui") for path in (REPOSITORY / top).rglob("*.py")]
    read = {found for path in sources for found in name.findall(path.read_text(encoding="utf-8"))}
    documented = {found for page in PAGES for found in name.findall(page.read_text(encoding="utf-8"))}
    assert documented == read


def test_readme_counts_the_mutants_of_the_metal_page() -> None:
    page = (REPOSITORY / "models" / "METAL.md").read_text(encoding="utf-8")
    (more,) = re.findall(r"(\d+) more mutants", page)
    tables = re.findall(r"^\|---\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert len(tables) == 2
    mutants = int(more) + sum(len(table.splitlines()) for table in tables)
    assert f"{mutants} mutants" in README.read_text(encoding="utf-8")


def test_the_help_in_readme_is_that_of_macllm() -> None:
    (shown,) = [body for body in blocks("console") if body.startswith("$ macllm --help\n")]
    assert shown == f"$ macllm --help\n{help_text()}"


def commands() -> list[list[str]]:
    """Arguments of every call of macllm in README's shell blocks, split at pipes and &&."""
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
def test_macllm_accepts_every_command_of_readme(words: list[str]) -> None:
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
def test_python_code_of_readme_runs(body: str, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_every_command_is_mentioned() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"macllm {name}" not in text] == []


if __name__ == "__main__":
    rewrite()
