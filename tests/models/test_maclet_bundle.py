"""Copying the weights of a run into the bundled checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from macllm.weights.safetensors import save_folder
from macllm_models.maclet.bundle import bundle

SHAPE = {"model_type": "llama", "hidden_size": 4}


def checkpoint(folder: Path, tokenizer: bytes = b"pieces", **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE | config))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


def trained(folder: Path, **config: object) -> Path:
    checkpoint(folder, **config)  # type: ignore[arg-type]
    save_folder({"norm.weight": mx.array([1.0, 0.1, -2.0, 3.0])}, folder)
    return folder


def test_weights_are_stored_in_float16(tmp_path: Path) -> None:
    home = checkpoint(tmp_path / "home", dtype="float16")
    stored = mx.load(str(bundle(trained(tmp_path / "run", dtype="float32"), home)))
    assert isinstance(stored, dict)
    assert stored["norm.weight"].dtype == mx.float16
    assert mx.allclose(stored["norm.weight"].astype(mx.float32), mx.array([1.0, 0.1, -2.0, 3.0]), atol=1e-3)


@pytest.mark.parametrize(
    ("other", "named"), [({"hidden_size": 8}, "hidden_size"), ({"tokenizer": b"others"}, "tokenizer")]
)
def test_weights_of_another_shape_or_tokenizer_are_refused(
    tmp_path: Path, other: dict[str, object], named: str
) -> None:
    home = checkpoint(tmp_path / "home")
    with pytest.raises(ValueError, match=named):
        bundle(trained(tmp_path / "run", **other), home)
    assert not (home / "model.safetensors").exists()
