"""Adapters of models that mlx-lm's classes run: adapted layers, and their names in each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from macllm import adapter, checkpoint
from macllm.adapter.export import export
from macllm.cli import main
from macllm.errors import CheckpointError
from macllm.nn import lora
from tests.families.foreign import write

pytestmark = pytest.mark.parity
TOKENS = mx.array([[5, 6, 7, 8, 9, 10]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["dbrx", "exaone", "gpt_bigcode", "gpt_neox", "gptj", "recurrent_gemma", "gemma3n_text"]
)
def test_the_last_layers_of_a_class_are_adapted_whatever_it_calls_them(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    model: Any = checkpoint.load_model(tmp_path)
    count = len(model.model.layers)
    names = lora.apply(model, rank=2, alpha=4.0, num_layers=2)
    numbers = {int(next(word for word in each.split(".") if word.isdigit())) for each in names}
    assert numbers == {count - 2, count - 1}
    gradients = nn.value_and_grad(model, lambda: model(TOKENS).astype(mx.float32).square().sum())()[1]
    flat = dict(tree_flatten(gradients))
    assert len(flat) == 2 * len(names)
    assert any(mx.abs(flat[f"{each}.lora_b"]).max() > 0 for each in names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gemma4_text-moe", "granitemoe", "longcat_flash", "dbrx"])
def test_routers_stay_as_they_are_unless_a_pattern_names_them(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    model: Any = checkpoint.load_model(tmp_path)
    assert not [each for each in lora.targets(model) if "router" in each]
    assert all("router" in each for each in lora.targets(model, keys=("*.router.*",)))


@pytest.mark.filterwarnings("ignore")
def test_names_that_transformers_does_not_have_are_not_written_for_peft(tmp_path: Path) -> None:
    write("gpt_neox", tmp_path / "m")
    model: Any = checkpoint.load_model(tmp_path / "m")
    lora.apply(model, rank=2, alpha=4.0)
    adapter.save(model, tmp_path / "a", {})
    with pytest.raises(CheckpointError, match="cannot be written in PEFT's format"):
        export(checkpoint.load_model(tmp_path / "m"), tmp_path / "a", tmp_path / "p", "peft")


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_saved_is_refused_before_it_is_merged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("gpt_neox", tmp_path / "m")
    model: Any = checkpoint.load_model(tmp_path / "m")
    lora.apply(model, rank=2, alpha=4.0)
    adapter.save(model, tmp_path / "a", {})
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: (model, None))
    monkeypatch.setattr("macllm.adapter.merge.probes", lambda *_: pytest.fail("merging began"))
    words = ["fuse", "--model", str(tmp_path / "m"), "--adapter", str(tmp_path / "a"), "--output", str(tmp_path / "o")]
    assert main(words) == 2
    assert "only models of a supported family can be saved" in capfd.readouterr().err
