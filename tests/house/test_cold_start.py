"""Modules that frequent commands must not import, so that they start fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from macllm.cli import COMMANDS

HEAVY = {"mlx", "textual", "rich", "tokenizers", "sentencepiece", "transformers", "mlx_lm", "torch"} | {
    "huggingface_hub",
    "numpy",
    "jinja2",
}

CASES = {
    "import macllm": "import macllm",
    "import errors": "import macllm.errors, macllm.generation.request",
    "macllm": "import macllm.cli; macllm.cli.main([])",
    "macllm --help": "import macllm.cli; macllm.cli.main(['--help'])",
    "macllm --version": "import macllm.cli; macllm.cli.main(['--version'])",
} | {f"macllm {name} --help": f"import macllm.cli; macllm.cli.main(['{name}', '--help'])" for name in COMMANDS}


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys; print('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.rsplit("MODULES", 1)[1].split()}


@pytest.mark.parametrize("case", CASES)
def test_imports_help_and_version_load_no_heavy_library(case: str) -> None:
    assert modules_after(CASES[case]) & HEAVY == set()


def test_a_first_token_imports_no_unused_heavy_module() -> None:
    loaded = modules_after("import macllm.cli; macllm.cli.main(['generate', '--max-tokens', '1', 'Hello'])")
    assert "mlx" in loaded
    assert loaded & {"numpy", "email", "secrets", "multiprocessing", "tomllib"} == set()


def test_a_command_exits_without_a_final_garbage_collection() -> None:
    program = (
        "import atexit, gc, macllm.cli; atexit.register(lambda: print('FROZEN', gc.get_freeze_count() > 0));"
        "macllm.cli.main([])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "FROZEN True" in result.stdout  # exit handlers run in reverse order


def test_the_compiled_kernels_are_hashed_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from macllm.ops.cpu import build

    build._key.cache_clear()
    build._whole.cache_clear()
    hashed: list[int] = []
    sha256 = build.hashlib.sha256
    monkeypatch.setattr(build.hashlib, "sha256", lambda *data: hashed.append(1) or sha256(*data))
    paths = {build.library() for _ in range(3)}
    module = paths.pop()
    assert not paths
    before = len(hashed)
    assert before == 1
    if module.exists():
        assert all(build.whole(module) for _ in range(3))
        assert len(hashed) == 2


def test_importing_compiled_kernels_does_not_import_multiprocessing() -> None:
    assert modules_after("import macllm.ops.cpu") & {"mlx", "multiprocessing"} == {"mlx"}


def test_the_probe_finds_imported_modules() -> None:
    assert modules_after("import numpy") & HEAVY == {"numpy"}


def test_importing_macllm_imports_none_of_its_modules(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import macllm, sys; print(*[m for m in sys.modules if m.startswith('macllm')])"],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository,
    )
    assert result.stdout.split() == ["macllm"]
