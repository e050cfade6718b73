from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"mlx.core", "textual", "rich", "tokenizers", "transformers"}


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [
        ("macllm_tui", set()),
        ("macllm_tui.front, macllm_tui.plain, macllm.chat.options, macllm.generation.engines.process", set()),
        ("macllm_tui.app, macllm_tui.front", {"textual", "rich"}),
    ],
)
def test_the_tui_imports_no_model_libraries_and_line_mode_no_screen_libraries(modules: str, loaded: set[str]) -> None:
    program = f"import sys, {modules}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(found) == loaded
