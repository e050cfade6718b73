"""The wheel installs three complete packages and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

FOLDERS = {"macllm": "macllm", "macllm_tui": "tui", "macllm_models": "models"}
BUILT = ("__pycache__", "*.egg-info", ".venv", ".git", "build", "dist", ".*_cache", ".hypothesis", "*.so")


def settings(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def shipped(repository: Path) -> set[str]:
    """Expected path of each file of the three packages, relative to site-packages."""
    return {
        f"{package}/{path.relative_to(repository / folder)}"
        for package, folder in FOLDERS.items()
        for path in (repository / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")
    }


def test_every_package_is_listed(repository: Path) -> None:
    found = {
        ".".join((package, *path.parent.relative_to(repository / folder).parts))
        for package, folder in FOLDERS.items()
        for path in (repository / folder).rglob("*.py")
        if package != "macllm_models" or path.parent == repository / folder
    }
    assert found == set(settings(repository)["tool"]["setuptools"]["packages"])


def test_every_folder_of_modules_is_a_package(repository: Path) -> None:
    folders = {path.parent for top in ("macllm", "tui") for path in (repository / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_module_has_its_place_in_the_layers(repository: Path) -> None:
    layers = settings(repository)["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {name.strip("() ") for layer in layers for name in layer.split("|")}
    found = {f"macllm.{path.stem}" for path in (repository / "macllm").iterdir() if not path.name.startswith("__")}
    assert found - {"macllm.py"} <= placed


def test_parity_oracles_are_no_dependencies(repository: Path) -> None:
    named = " ".join(settings(repository)["project"]["dependencies"])
    assert not [name for name in ("transformers", "torch", "trl", "peft") if name in named]


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_three_packages_whole(repository: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(repository, tree, ignore=shutil.ignore_patterns(*BUILT))
    # The wheel is built from the sdist: a file missing from the sdist is missing from both.
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.getnames())
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == shipped(tree)
    assert {"macllm_tui/macllm.tcss", "macllm_models/maclet/config.json", "macllm/py.typed"} <= names

    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    assert {path.name for path in site.iterdir()} - {"bin"} - {name.split("/")[0] for name in info} == set(FOLDERS)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from macllm import cli; print(cli.__file__); sys.exit(cli.main(sys.argv[1:]))"
    )
    prompt = ["generate", "--max-tokens", "4", "What is attention?"]
    result = subprocess.run(
        [sys.executable, "-c", program, *prompt], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    where, answer = result.stdout.split("\n", 1)
    assert where.startswith(str(site))
    assert answer.strip()
