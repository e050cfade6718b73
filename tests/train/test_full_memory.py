"""Runs out of memory: they go on with smaller micro-batches of the same rows, in real processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macllm import cli
from macllm.child import Exit
from macllm.errors import DoesNotFitError, MacllmError
from macllm.train import data
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.events import Advanced, Finished, Restarted, Step, TrainEvent
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import Batch, CausalLM
from macllm.train.optim import configured
from macllm.train.passes import Passes
from macllm.train.runs import full_memory
from macllm.train.runs.supervisor import supervised
from macllm.train.snapshot import Snapshots
from macllm.train.sources import Rows, Validation
from tests.train.test_contract import masked_events
from tests.train.toy import CharTokenizer, random_llama

REFUSED = "[metal::malloc] Attempting to allocate 64 bytes which is greater than the maximum allowed buffer size."
ABORTED = "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer "
ABORTED += "execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"


class Crowded(CausalLM):
    """An objective without room for more than `rows` rows of `length` tokens at once."""

    rows: int
    length: int
    how: str  # it fails, unless layers are computed again

    def loss(self, model: Any, batch: Batch) -> Loss:
        is_full = len(batch.inputs) > self.rows and batch.inputs.shape[1] >= self.length
        if is_full and not any(getattr(module, "checkpoints_layers", False) for module in model.modules()):
            if self.how == "refused":
                raise RuntimeError(REFUSED)
            if self.how == "aborted":
                os.write(2, f"{ABORTED}\n".encode())
                os.abort()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)


def crowded(config: FinetuneConfig) -> Generator[TrainEvent]:
    objective = Crowded()
    for name, value in json.loads((Path(config.data).parent / "room.json").read_text()).items():
        object.__setattr__(objective, name, value)
    yield from masked_events(config, random_llama(vocab_size=128), objective)


def unloadable(_config: FinetuneConfig) -> Generator[TrainEvent]:
    yield Advanced("reading", 1, 2)
    raise RuntimeError(REFUSED)


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    texts = [json.dumps({"text": "abcd"[i % 4] * (3 + i % 17)}) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(texts))
    return FinetuneConfig(
        data=str(tmp_path / "rows.jsonl"), adapter_path=str(tmp_path / "run"), iters=8, batch_size=8,
        learning_rate=0.01, steps_per_report=2, save_every=3,
    )  # fmt: skip


def run(config: FinetuneConfig, rows: int, length: int = 0, how: str = "refused") -> list[TrainEvent]:
    room = {"rows": rows, "length": length, "how": how}
    (Path(config.data).parent / "room.json").write_text(json.dumps(room))
    return list(supervised("tests.train.test_full_memory:crowded", config, 1))


def restarts(events: list[TrainEvent]) -> list[tuple[int, dict[str, Any]]]:
    return [(event.step, dict(event.changed)) for event in events if isinstance(event, Restarted)]


def straight(config: FinetuneConfig, micro_batch: int) -> dict[str, mx.array]:
    """The weights at the end of a run that goes through in one process, with micro-batches of this size."""
    objective, model = CausalLM(), random_llama(vocab_size=128)
    examples, seed = data.load(config, objective, CharTokenizer()).train, config.seed
    size, count = config.batch_size, config.grad_accumulation_steps
    source = Rows(objective, examples, batch_size=size, accumulation=count, seed=seed).regrouped(micro_batch)
    validation = Validation(objective, [], batch_size=size, most=-1, seed=seed)
    for _ in Trainer(Passes(model, objective, source, validation), configured(config, model), config).run():
        pass
    return weights(model)


def weights(model: nn.Module) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))  # type: ignore[arg-type]


def exported(config: FinetuneConfig) -> dict[str, mx.array]:
    return mx.load(str(Path(config.adapter_path) / "weights.safetensors"))  # type: ignore[return-value]


@pytest.mark.slow
def test_a_run_without_room_for_a_batch_goes_on_with_half_of_it_to_the_bits_of_a_run_begun_so(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    halved = {"batch_size": (8, 4), "grad_accumulation_steps": (1, 2)}
    events = run(config, rows=4)
    assert restarts(events) == [(0, halved)]
    assert isinstance(events[-1], Finished)
    found, small, large = exported(config), straight(config, 4), straight(config, 8)
    for name, weight in found.items():
        assert mx.array_equal(weight, small[name]), name
        np.testing.assert_allclose(np.array(weight), np.array(large[name]), rtol=0, atol=1e-5, err_msg=name)
    again = FinetuneConfig.load(adapter_path=config.adapter_path, resume=True)
    assert (again.batch_size, again.grad_accumulation_steps) == (4, 2)
    assert cli.main(["runs", "show", config.adapter_path]) == 0
    change = "batch_size 4 in place of 8, grad_accumulation_steps 2 in place of 1"
    assert f"out of memory  goes on from step 0 with {change}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["aborted", "killed"])
def test_memory_that_is_full_in_the_middle_of_a_run_leaves_the_rows_of_its_steps(
    config: FinetuneConfig, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_memory, "machine_memory", lambda: 1 << 20)
    events = run(replace(config, save_every=1), rows=2, length=24, how=how)
    seen = restarts(events)
    assert [changed["batch_size"] for _, changed in seen] == [(8, 4), (4, 2)]
    assert seen[0][0] > 0
    assert sum(isinstance(event, Step) and event.step == 8 for event in events) == 1
    found, large = exported(config), straight(config, 8)
    for name, weight in found.items():
        np.testing.assert_allclose(np.array(weight), np.array(large[name]), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_with_one_row_at_once_layers_are_computed_again_unless_the_user_refused_that(config: FinetuneConfig) -> None:
    config = replace(config, batch_size=2, iters=3)
    assert [changed for _, changed in restarts(run(config, rows=0))] == [
        {"batch_size": (2, 1), "grad_accumulation_steps": (1, 2)},
        {"grad_checkpoint": (False, True)},
    ]
    found, small = exported(config), straight(config, 1)
    assert all(mx.array_equal(weight, small[name]) for name, weight in found.items())
    assert FinetuneConfig.load(adapter_path=config.adapter_path, resume=True).grad_checkpoint is True
    refusing = replace(config, adapter_path=f"{config.adapter_path}-2", batch_size=1, grad_checkpoint=False)
    with pytest.raises(DoesNotFitError, match=r"Attempting to allocate 64(.|\n)*--grad-checkpoint"):
        run(refusing, rows=0)


@pytest.mark.slow
def test_memory_that_is_full_before_a_run_begins_is_no_matter_of_its_batches(config: FinetuneConfig) -> None:
    with pytest.raises(RuntimeError, match="Attempting to allocate"):
        list(supervised("tests.train.test_full_memory:unloadable", config, 1))


def test_full_memory_is_seen_in_errors_of_allocators_in_logs_and_in_killed_processes_that_held_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_memory, "machine_memory", lambda: 1000)
    (log := tmp_path / "log").write_text(f"Loading.\n{ABORTED}\n")
    assert full_memory.seen(Exit(-signal.SIGABRT, False, log), 0) == ABORTED
    log.write_text("terminating due to Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)\n")
    assert full_memory.seen(Exit(-signal.SIGABRT, False, log), 999) is None
    for mine, of_mlx, is_full in ((900, 0, True), (0, 900, True), (700, 700, False)):
        assert (full_memory.seen(Exit(-signal.SIGKILL, False, None, mine), of_mlx) is not None) == is_full
        assert full_memory.seen(Exit(-signal.SIGSEGV, False, None, mine), of_mlx) is None
    unsaved = MacllmError("cannot write the snapshot", cause="[malloc] Unable to allocate 64 bytes.")
    errors = [RuntimeError(REFUSED), MemoryError(), MemoryError("std::bad_alloc"), unsaved]
    assert all(full_memory.refused(error) for error in errors)
    assert full_memory.refused(RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout")) is None


def test_settings_are_reduced_to_one_row_and_no_further(config: FinetuneConfig) -> None:
    sizes = []
    config = replace(config, batch_size=12, grad_accumulation_steps=2)
    while changed := full_memory.reduced(config, recomputes=True):
        config = replace(config, **{name: now for name, (_, now) in changed.items()})
        sizes.append((config.batch_size, config.grad_accumulation_steps, config.grad_checkpoint))
    assert sizes == [(6, 4, None), (3, 8, None), (1, 24, None), (1, 24, True)]
    assert full_memory.reduced(replace(config, grad_checkpoint=None), recomputes=False) == {}


def test_a_run_with_smaller_batches_evaluates_the_same_sample(config: FinetuneConfig, tmp_path: Path) -> None:
    model, objective, began = random_llama(vocab_size=128), CausalLM(), {"batch_size": 8, "grad_accumulation_steps": 1}
    rows = data.load(config, objective, CharTokenizer())
    rows = replace(rows, valid=rows.train)
    batches = []
    for size in (8, 2):
        smaller = replace(config, batch_size=size, grad_accumulation_steps=8 // size, val_batches=2)
        kept = Snapshots(tmp_path / "snapshots", 1, smaller.reproducibility_fields(), began=began)
        validation = Trainer.of(model, objective, smaller, rows, kept).passes.validation
        batches.append([batch.inputs for batch in validation.batches()])
    assert [len(each) for each in batches] == [2, 8]
    sample, parts = (sorted(row.tobytes().rstrip(b"\0") for each in some for row in each) for some in batches)
    assert sample == parts
