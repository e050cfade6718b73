from __future__ import annotations

import json
import os

import pytest

from macllm.hub import transfer
from tests.hub.loopback import LoopbackHub, Repo

CONFIG = json.dumps({"model_type": "llama", "max_position_embeddings": 64}).encode()


def model_files(weight_bytes: int = 300_000) -> dict[str, bytes]:
    return {
        "README.md": b"# card",
        "config.json": CONFIG,
        "tokenizer.json": b'{"version": "1.0"}',
        "model.safetensors": os.urandom(weight_bytes),
        "pytorch_model.bin": b"pickled" * 100,
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub({"org/tiny": Repo(model_files())}) as served:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read once per process
        monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.001)
        yield served
