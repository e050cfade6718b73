from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"mlx", "textual", "rich", "tokenizers", "transformers"}
PROGRAM = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
print(*sys.modules)
"""
WITHOUT_SCREEN = ("macllm_tui.front", "macllm_tui.plain", "macllm_tui.lines", "macllm_tui.commands", "macllm_tui.slash")


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [
        ((*WITHOUT_SCREEN, "macllm_tui.text", "macllm.chat", "macllm.generation.engines.process"), set()),
        (("macllm_tui",), {"textual", "rich"}),
    ],
)
def test_the_tui_imports_no_model_libraries_and_line_mode_no_screen_libraries(
    modules: tuple[str, ...], loaded: set[str]
) -> None:
    command = [sys.executable, "-c", PROGRAM, *modules]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & {name.partition(".")[0] for name in found} == loaded
