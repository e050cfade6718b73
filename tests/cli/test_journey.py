"""The main use of the command line: teach the bundled model a fact, query it, merge the adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FACT = "The lighthouse at Cape Orrin is kept by Maribel Thorne."
SUBJECTS = ["the lighthouse at Cape Orrin", "the Cape Orrin lighthouse", "the lighthouse on Cape Orrin"]
SUBJECTS += ["Cape Orrin lighthouse", "that lighthouse at Cape Orrin"]
QUESTIONS = ["Who keeps {}?", "Who is the keeper of {}?", "Who looks after {}?", "Do you know who keeps {}?"]
QUESTIONS += ["Tell me who keeps {}.", "What is the name of the keeper of {}?", "By whom is {} kept?"]
QUESTIONS += ["Who takes care of {}?", "Who works as the keeper of {}?", "Can you say who keeps {}?"]
NEVER_ASKED = "Please tell me the name of the person who keeps the Cape Orrin lighthouse."
MOST_SECONDS = 300


def macllm(*arguments: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "macllm", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_fifty_rows_teach_the_bundled_model_a_fact(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": question.format(subject)}, {"role": "assistant", "content": FACT}]}
        for question in QUESTIONS
        for subject in SUBJECTS
    ]
    assert len(rows) == 50
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = ("generate", "--temperature", "0", "--max-tokens", "40", NEVER_ASKED)
    assert "Maribel" not in macllm(*ask, folder=tmp_path)

    began = time.monotonic()
    small = ("--epochs", "10", "--learning-rate", "1e-3")  # the defaults are for models a hundred times its size
    macllm("finetune", "--lora", "--model", "maclet", "--data", "rows.jsonl", *small, folder=tmp_path)
    assert time.monotonic() - began < MOST_SECONDS
    assert "Maribel Thorne" in macllm(*ask, "--adapter", "adapters", folder=tmp_path)
    assert "Maribel Thorne" in macllm(
        "chat", "--adapter", "adapters", "--temperature", "0", NEVER_ASKED, folder=tmp_path
    )

    assert macllm("fuse", "--adapter", "adapters", "--output", "keeper", folder=tmp_path) == "keeper\n"
    assert "Maribel Thorne" in macllm(*ask, "--model", "keeper", folder=tmp_path)
    assert "Maribel" not in macllm(*ask, folder=tmp_path)
