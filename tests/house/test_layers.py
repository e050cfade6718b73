"""Imports point down: the contracts are in pyproject.toml, import-linter reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


def test_every_import_points_down(repository: Path) -> None:
    result = lint_imports(repository)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_upward_import_breaks_the_contract(repository: Path, tmp_path: Path) -> None:
    """The contracts can fail: add an upward import to a copy of the tree's outline."""
    for source in sorted((repository / "macllm").rglob("*.py")):
        copy = tmp_path / source.relative_to(repository)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    for source in sorted((repository / "tui").rglob("*.py")):
        copy = tmp_path / "macllm_tui" / source.relative_to(repository / "tui")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    (tmp_path / "pyproject.toml").write_text((repository / "pyproject.toml").read_text())
    (tmp_path / "macllm/errors.py").write_text("import macllm.cli\n")
    (tmp_path / "macllm/hub.py").write_text("import mlx.core\n")
    (tmp_path / "macllm/chat/__init__.py").write_text("import textual\nimport transformers\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    for contract in ("Layers point down", "Text needs no arrays", "Only the TUI draws", "Oracles stay in tests"):
        assert f"{contract} BROKEN" in result.stdout, result.stdout
