"""The reference: the weights of a run's beginning, stored once or live, never those of a later step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.nn import lora
from macllm.train import finetune, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Advanced, Counts, Evaluated, Prepared, Step
from macllm.train.objectives import reference
from macllm.train.objectives.dpo import DPO
from macllm.train.objectives.pairs import Pair, log_probabilities
from tests.tables.gradients import example
from tests.train.recipes import write_recipe
from tests.train.toy import random_llama

PAIRS = [
    Pair(example(17, 11), example(15, 11)),
    Pair(example(8, 6), example(23, 17)),
    Pair(example(4, 2), example(3, 2)),
    Pair(example(9, 3), example(9, 3, seed=2)),
]


def dpo(**settings: Any) -> DPO:
    return DPO(FinetuneConfig(data="x", objective="dpo", batch_size=2, epochs=1.0, **settings))


def adapted(dtype: Any = mx.float32) -> nn.Module:
    """A model with an adapter that changes its answers."""
    model = random_llama(vocab_size=67)
    model.set_dtype(dtype)
    lora.apply(model, rank=2, alpha=4)
    for name, layer in lora.adapters(model).items():
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(len(name)))
    return model


def prepared(
    model: Any, folder: Path | None = None, base: str = "a", pairs: list[Pair] = PAIRS, **settings: Any
) -> tuple[Dataset[Pair], list[Advanced]]:
    """The dataset with references, and the progress."""
    work, told = dpo(**settings).prepare(model, Dataset(pairs, pairs[:1], Counts()), folder, base), []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return end.value, told


def gradients(model: Any, pairs: list[Pair]) -> tuple[float, dict[str, mx.array]]:
    objective = dpo()
    batch = objective.collate(pairs, np.random.default_rng(0))
    (loss, _, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    return loss.item(), dict(tree_flatten(tree))


def test_the_reference_of_an_adapted_model_is_its_base() -> None:
    model, base = adapted(), random_llama(vocab_size=67)
    found = prepared(model)[0].train
    for pair in found:
        batch = dpo().collate([pair], np.random.default_rng(0)).rows
        np.testing.assert_allclose(pair.reference, log_probabilities(base, batch)[0], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(pair.reference, reference.live(model, batch), rtol=1e-6, atol=1e-5)
        assert np.abs(np.array(pair.reference) - np.array(log_probabilities(model, batch)[0])).max() > 0.01


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_live_reference_gives_the_gradients_of_a_stored_one(recomputes: bool) -> None:
    from macllm.train.parameters import compute_layers_again

    model = adapted()
    compute_layers_again(model, recomputes)
    model.train()
    (loss, wanted), (live, found) = gradients(model, prepared(model)[0].train), gradients(model, PAIRS)
    assert live == pytest.approx(loss, rel=1e-6)
    for name, gradient in wanted.items():
        assert float(mx.abs(found[name] - gradient).max()) <= 5e-6 * float(mx.abs(gradient).max()), name


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_without_a_step_policy_and_reference_are_the_same(dtype: Any) -> None:
    model = random_llama(vocab_size=67)
    model.set_dtype(dtype)
    found = prepared(model)[0].train
    weights: Any = model.trainable_parameters()
    model.update(nn.utils.tree_map(lambda weight: weight.astype(mx.float32), weights))  # as the loop does
    loss, _ = gradients(model.train(), found)
    assert loss == pytest.approx(len(PAIRS) * np.log(2), rel=1e-5)
    fresh = random_llama(vocab_size=67)
    fresh.set_dtype(dtype)
    lora.apply(fresh, rank=2, alpha=4)
    assert gradients(fresh.train(), prepared(fresh)[0].train)[0] == pytest.approx(len(PAIRS) * np.log(2), rel=1e-5)


def test_the_reference_has_no_dropout_and_leaves_the_model_as_it_was() -> None:
    model = random_llama(vocab_size=67)
    model.set_dtype(mx.bfloat16)
    model.train()
    before = [(name, weight.dtype) for name, weight in tree_flatten(model.parameters())]
    prepared(model)
    assert model.training
    assert [(name, weight.dtype) for name, weight in tree_flatten(model.parameters())] == before
    adapter = adapted()
    adapter.train()
    reference.live(adapter, dpo().collate(PAIRS, np.random.default_rng(0)).rows)
    assert all(layer.training for layer in lora.adapters(adapter).values())


def test_stored_numbers_are_read_again_for_the_same_weights_and_rows_only(tmp_path: Path) -> None:
    model = adapted()
    first, told = prepared(model, tmp_path)
    assert [event.done for event in told] == [0, 4, 8]
    assert (tmp_path / reference.NAME).is_file()
    again, told = prepared(adapted(), tmp_path)
    assert told == []
    assert [pair.reference for pair in again.train] == [pair.reference for pair in first.train]
    assert prepared(model, tmp_path, base="b")[1]
    assert prepared(model, tmp_path, base="b", pairs=PAIRS[:3])[1]
    assert not prepared(model, tmp_path, base="b", pairs=PAIRS[:3])[1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, content: bytes) -> None:
    model = adapted()
    first = prepared(model, tmp_path)[0]
    path = tmp_path / reference.NAME
    whole = path.read_bytes()
    path.write_bytes(content or whole[: len(whole) // 2])
    again, told = prepared(model, tmp_path)
    assert told
    assert [pair.reference for pair in again.train] == [pair.reference for pair in first.train]
    assert path.read_bytes() == whole


def test_an_interrupted_preparation_leaves_no_file(tmp_path: Path) -> None:
    work = dpo().prepare(adapted(), Dataset(PAIRS, [], Counts()), tmp_path, "a")
    next(work)
    work.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({}, True),
        ({"epochs": 0.5}, False),
        ({"iters": 1}, False),
        ({"iters": 2}, True),
        ({"iters": 1, "grad_accumulation_steps": 2}, True),
        ({"iters": 1, "reference": "stored"}, True),
        ({"reference": "live"}, False),
        ({"iters": 1, "method": "full"}, True),
    ],
)
def test_the_reference_is_stored_where_it_saves_a_pass(settings: dict[str, Any], stored: bool) -> None:
    assert reference.is_stored(replace(dpo().config, **settings), len(PAIRS)) == stored


def test_a_live_reference_of_full_fine_tuning_is_refused() -> None:
    with pytest.raises(UsageError, match="reference cannot be live"):
        dpo(method="full", reference="live")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_recipe(folder)
    return pretrain.train(PretrainConfig.load(folder / "recipe.toml", output=folder / "run", iters=3)) / "model"


def config(base: Path, out: Path, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig.load(
        data=base.parents[1] / "pairs.jsonl", model=base, adapter_path=out, valid_fraction=0.25, iters=6, batch_size=4,
        max_seq_length=32, learning_rate=0.01, steps_per_report=1, steps_per_eval=3, **settings,
    )  # fmt: skip


def run(config: FinetuneConfig, stop: Any = None) -> list[Any]:
    """The reports of a run; it is closed at the first event that `stop` is true of."""
    seen = []
    with closing(finetune.events(config)) as events:
        for event in events:
            seen.append(event)
            if stop is not None and stop(event):
                break
    return [event for event in seen if isinstance(event, Step | Evaluated)]


def reported(events: list[Any]) -> list[Any]:
    return [(event.step, event.loss, sorted(event.metrics.items())) for event in events]


def weights(folder: Path) -> Iterator[tuple[str, bytes]]:
    path = folder / "adapters.safetensors"
    path = path if path.is_file() else folder / "model/model.safetensors"
    yield from sorted((name, np.array(array).tobytes()) for name, array in mx.load(str(path)).items())


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ("dpo", "lora"),
        ("kto", "full"),
        pytest.param("dpo", "full", marks=pytest.mark.slow),
        pytest.param("kto", "lora", marks=pytest.mark.slow),
        pytest.param("orpo", "lora", marks=pytest.mark.slow),
    ],
)
def test_a_run_ended_before_its_first_step_or_in_the_middle_resumes_to_the_same_bytes(
    objective: str, method: str, base: Path, tmp_path: Path
) -> None:
    settings = {"objective": objective, "method": method}
    whole = run(config(base, tmp_path / "whole", **settings))
    for name, stop in (
        ("prepared", lambda event: isinstance(event, Prepared)),
        ("middle", lambda event: isinstance(event, Step) and event.step == 4),
    ):
        out = tmp_path / name
        early = run(config(base, out, **settings), stop)
        before = (out / reference.NAME).stat().st_mtime_ns if objective != "orpo" else 0
        late = run(replace(config(base, out, **settings), resume=True))
        assert reported(early + [event for event in late if event.step > 4 or not early]) == reported(whole)
        assert list(weights(out)) == list(weights(tmp_path / "whole"))
        assert objective == "orpo" or (out / reference.NAME).stat().st_mtime_ns == before


def test_a_reference_that_moves_is_seen_in_the_losses(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config(base, tmp_path / "whole", objective="dpo"))
    live = run(config(base, tmp_path / "live", objective="dpo", reference="live"))
    np.testing.assert_allclose([event.loss for event in live], [event.loss for event in whole], rtol=1e-5)
    monkeypatch.setattr(lora, "disabled", lambda model: reference.evaluating(model))
    moved = run(config(base, tmp_path / "moved", objective="dpo", reference="live"))
    assert abs(moved[-1].loss - whole[-1].loss) > 0.01


KILLED = """
import json, os, signal, sys
from macllm.train import finetune
from macllm.train.config import FinetuneConfig
from macllm.train.events import Advanced, Prepared
from macllm.train.objectives import reference

moment, publish = sys.argv[2], reference.replacing
if moment == "while it is written":
    reference.replacing = lambda path: os.kill(os.getpid(), signal.SIGKILL)
for event in finetune.events(FinetuneConfig.load(**json.loads(sys.argv[1]))):
    preparing = isinstance(event, Advanced) and event.work == "preparing" and event.done > 0
    if (moment == "preparing" and preparing) or (moment == "prepared" and isinstance(event, Prepared)):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["preparing", "while it is written", "prepared"])
def test_a_run_killed_before_its_first_step_ends_as_one_that_was_not(
    moment: str, base: Path, tmp_path: Path, repository: Path
) -> None:
    run(config(base, tmp_path / "whole", objective="kto"))
    wanted = config(base, tmp_path / "killed", objective="kto")
    command = [sys.executable, "-c", KILLED, json.dumps(wanted.as_dict()), moment]
    killed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "killed" / reference.NAME).is_file() == (moment == "prepared")
    run(replace(wanted, resume=moment == "prepared"))
    assert list(weights(tmp_path / "killed")) == list(weights(tmp_path / "whole"))
