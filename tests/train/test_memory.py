"""The least memory of a run, told before the first step."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from macllm.cli import training
from macllm.train.config import FinetuneConfig, Method, PretrainConfig
from macllm.train.events import Finished, Prepared, TrainEvent
from macllm.train.memory import least_bytes

SHAPE = {"hidden_size": 100, "intermediate_size": 300, "num_hidden_layers": 10}


def prepared(trained: int = 1000) -> Prepared:
    return Prepared(4, 80, 80, *[0] * 7, parameters=5000, trained_parameters=trained, steps=4, first_step=0)


def test_weights_gradients_moments_and_activations_are_counted() -> None:
    """Four rows of 20 tokens; 7 x 100 + 3 x 300 numbers per token and layer, mostly of 16 bits."""
    config = FinetuneConfig(data="x")
    activations = 10 * 80 * 2 * 1600
    assert least_bytes(config, prepared(), SHAPE, 7777) == 7777 + 1000 * 16 + activations
    assert least_bytes(config, prepared(), {"text_config": SHAPE}, 7777) == 7777 + 1000 * 16 + activations
    assert least_bytes(config, prepared(), {"hidden_size": "?"}, 7777) == 7777 + 1000 * 16
    assert least_bytes(config, prepared(5000), SHAPE, 0) == 5000 * 16 + 2 * activations
    checkpointed = FinetuneConfig(data="x", grad_checkpoint=True, optimizer="lion", first_moment_bits=8)
    assert least_bytes(checkpointed, prepared(), SHAPE, 0) == 1000 * 9 + 10 * 80 * 2 * 100 + 80 * 2 * 1600


@pytest.mark.parametrize(("method", "trained", "weights"), [("lora", 1000, 26_000), ("full", 5000, 80_000)])
def test_weights_of_16_bits_that_are_trained_take_32(
    method: Method, trained: int, weights: int, tmp_path: Path
) -> None:
    """Full: 16 bytes for each of 5000 weights; LoRA: a base of two bytes for each beside the adapter."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(2 * 5000))
    config = FinetuneConfig(data="x", model=str(tmp_path), method=method)
    assert training._needed(config, prepared(trained)) == weights


@pytest.mark.parametrize(("limit", "told"), [(1_000, True), (10**15, False)])
def test_a_run_that_cannot_fit_is_told_before_its_first_step(
    limit: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def events(_config: object) -> Generator[TrainEvent]:
        yield prepared()
        yield Finished(1, 1.0, 1.0, "folder")

    monkeypatch.setattr("macllm.hub.fit.memory_limit", lambda: limit)
    monkeypatch.setattr("macllm.train.finetune.events", events)
    monkeypatch.setattr("macllm.train.pretrain.events", events)
    missing = PretrainConfig(data="x", config=str(tmp_path / "none.json"))
    for config, known in ((FinetuneConfig(data="x"), True), (missing, False)):
        training.narrate(training.events(config, restarts=0), "folder")
        assert ("this takes at least" in capsys.readouterr().err) == (told and known)
