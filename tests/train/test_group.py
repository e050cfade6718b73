"""Data-parallel training: several processes do the steps of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from macllm.errors import MacllmError
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts, Evaluated, Saved, Step
from macllm.train.group import Distributed, PeerError, sum_losses
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.snapshot import Snapshots, Sums
from macllm.train.sources import Rows
from tests.train.test_contract import VOCAB, MaskedLM
from tests.train.test_pack import LLAMA, decoder
from tests.train.toy import ToyLM, arithmetic_rows

CONFIG = TrainConfig(
    data="x", iters=9, batch_size=3, grad_accumulation_steps=2, learning_rate=1e-2, steps_per_report=1,
    steps_per_eval=4, save_every=3,
)  # fmt: skip
ROWS = Dataset(arithmetic_rows(13), arithmetic_rows(7, seed=9), Counts())


class Threads:
    """Groups of threads of one process, whose sums wait for all."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.given: list[list[np.ndarray]] = [[] for _ in range(size)]

    def sum(self, rank: int, arrays: Sequence[mx.array]) -> list[mx.array]:
        self.given[rank] = [np.array(array) for array in arrays]
        self.barrier.wait()
        summed = [mx.array(sum(each)) for each in zip(*self.given, strict=True)]
        self.barrier.wait()
        return summed


class Member:
    def __init__(self, threads: Threads, rank: int) -> None:
        self.threads, self.rank, self.size = threads, rank, threads.size

    def sum(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        return self.threads.sum(self.rank, arrays)


def together(size: int, run: Any) -> list[Any]:
    """`run(group)` in each of `size` threads."""
    threads, results = Threads(size), [None] * size

    def one(rank: int) -> None:
        try:
            with mx.stream(mx.new_stream(mx.cpu)):
                results[rank] = run(Member(threads, rank))
        except BaseException as error:
            results[rank] = error
            threads.barrier.abort()

    running = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def trained(group: Any, config: TrainConfig, folder: Path | None = None, packs: bool = False) -> tuple[Any, list[Any]]:
    model = decoder({**LLAMA, "vocab_size": 32}) if packs else ToyLM()
    kept = None if folder is None else Snapshots(folder, config.keep, {})
    events = list(Trainer.of(model, CausalLM(), config, ROWS, kept, group).run())
    return {name: np.array(w) for name, w in tree_flatten(model.parameters())}, events


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60), batch=st.integers(1, 5), accumulation=st.integers(1, 4), size=st.integers(1, 5),
    bin_size=st.sampled_from([0, 25]),
)  # fmt: skip
def test_the_parts_of_a_step_have_its_rows_once(
    rows: int, batch: int, accumulation: int, size: int, bin_size: int
) -> None:
    examples = [replace(e, where=str(i)) for i, e in enumerate(arithmetic_rows(rows))]

    class Listing(CausalLM):
        def collate(self, examples: Any, random: Any) -> Any:
            return [e.where for e in examples]

        def pack(self, bins: Any, random: Any) -> Any:
            return [e.where for each in bins for e in each]

    options: Any = {"batch_size": batch, "accumulation": accumulation, "seed": 3, "bin_size": bin_size}
    source: Rows[Any, Any] = Rows(Listing(), examples, **options)
    model: Any = None
    seen = []
    for step in range(source.steps_per_epoch):
        whole = [where for micro in source.batches(step, model) for where in micro]
        parts = [[w for micro in source.part(rank, size).batches(step, model) for w in micro] for rank in range(size)]
        assert [where for part in parts for where in part] == whole
        assert bin_size or max(map(len, parts)) - min(map(len, parts)) <= 1
        seen += whole
    assert sorted(map(int, seen)) == list(range(rows))


def test_parts_of_whole_micro_batches_draw_what_one_process_draws() -> None:
    objective, model = MaskedLM(), ToyLM(VOCAB)
    source = Rows(objective, arithmetic_rows(16), batch_size=2, accumulation=4, seed=1)
    whole = [batch.inputs.tobytes() for batch in source.batches(1, model)]
    parts = [b.inputs.tobytes() for rank in range(2) for b in source.part(rank, 2).batches(1, model)]
    assert parts == whole
    uneven = [b.inputs.tobytes() for rank in range(3) for b in source.part(rank, 3).batches(1, model)]
    assert len(set(uneven)) == len(uneven)


@pytest.mark.parametrize(("size", "packs"), [(2, False), (3, False), (2, True)])
def test_several_processes_have_the_weights_losses_and_snapshots_of_one(tmp_path: Path, size: int, packs: bool) -> None:
    config = replace(CONFIG, packing=packs, max_seq_length=40 if packs else 2048)
    weights, events = trained(None, config, tmp_path / "one", packs)
    results = together(size, lambda group: trained(group, config, tmp_path / "several", packs))
    for rank, (found, told) in enumerate(results):
        for name, weight in weights.items():
            np.testing.assert_allclose(found[name], weight, rtol=0, atol=2e-5, err_msg=name)
            np.testing.assert_array_equal(found[name], results[0][0][name])
        for kind in (Step, Evaluated):
            ours, theirs = ([e for e in each if isinstance(e, kind)] for each in (told, events))
            assert [e.step for e in ours] == [e.step for e in theirs]
            np.testing.assert_allclose([e.loss for e in ours], [e.loss for e in theirs], rtol=1e-5)
        assert [e.tokens for e in told if isinstance(e, Evaluated)] == [
            e.tokens for e in events if isinstance(e, Evaluated)
        ]
        assert any(isinstance(e, Saved) for e in told) == (rank == 0)
    assert {p.name for p in (tmp_path / "several").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


def test_processes_resume_from_the_snapshots_of_the_first(tmp_path: Path) -> None:
    weights, _ = trained(None, CONFIG)
    together(2, lambda group: trained(group, CONFIG, tmp_path))
    for path in tmp_path.glob("step-*"):
        if path.name != "step-00000006":
            shutil.rmtree(path)
    found, _ = together(2, lambda group: trained(group, CONFIG, tmp_path))[1]
    for name, weight in weights.items():
        np.testing.assert_allclose(found[name], weight, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("kind", ["fails", "is closed"])
def test_the_end_of_one_process_ends_the_others(tmp_path: Path, failing: int, kind: str) -> None:
    """At the first snapshot of process 0, or in the second step of process 1, the others still going on."""

    def run(group: Any) -> Any:
        trainer = Trainer.of(ToyLM(), CausalLM(), CONFIG, ROWS, Snapshots(tmp_path, CONFIG.keep, {}), group)
        with pytest.raises(PeerError if group.rank != failing else OSError) as error:  # noqa: PT012
            stream = trainer.run()
            for event in stream:
                if group.rank == failing and getattr(event, "done", 0) == 2:
                    if kind == "fails":
                        stream.throw(OSError("full"))
                    stream.close()
                    raise OSError("closed")
        return str(error.value)

    said = together(3, run)
    assert all("has ended\ncause: it failed or was stopped" in each for r, each in enumerate(said) if r != failing)


def test_no_process_ends_well_if_the_last_snapshot_cannot_be_written(tmp_path: Path) -> None:
    def run(group: Any) -> Any:
        kept = Snapshots(tmp_path, CONFIG.keep, {})
        trainer = Trainer.of(ToyLM(), CausalLM(), replace(CONFIG, iters=2), ROWS, kept, group)
        kept.folder = tmp_path / "file"
        (tmp_path / "file").write_text("")
        with pytest.raises(MacllmError) as error:
            list(trainer.run())
        return str(error.value)

    first, second = together(2, run)
    assert "cannot write the snapshot" in first
    assert "another process of the run has ended" in second


def test_metrics_are_summed_by_name_also_where_a_process_has_none() -> None:
    given = [Sums(), Sums(2.0, 3.0, tokens=3, metrics={"b": 1.0, "a": 4.0}), Sums(1.0, 1.0, metrics={"ü": 2.0})]
    for total in together(3, lambda group: sum_losses(given[group.rank], group)):
        assert (total.numerator, total.denominator, total.tokens) == (3.0, 4.0, 3)
        assert total.metrics == {"a": 4.0, "b": 1.0, "ü": 2.0}


def ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    for each in taken:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return found


def ring_worker(where: str, killed: bool) -> None:
    """Train as one process of a ring, and write the weights, or kill process 0 after a step."""
    group = Distributed(mx.distributed.init(strict=True, backend="ring"))
    if not killed:
        weights, _ = trained(group, CONFIG)
        np.savez(Path(where) / f"{group.rank}.npz", **weights)
        return
    try:
        for event in Trainer.of(ToyLM(), CausalLM(), CONFIG, ROWS, None, group).run():
            if isinstance(event, Step) and not group.rank:
                os.kill(os.getpid(), signal.SIGKILL)
    except PeerError as error:
        (Path(where) / "error.txt").write_text(str(error))


def ring(where: Path, killed: bool) -> list[int]:
    """The exit codes of two processes in a ring."""
    hosts = where / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports(2)]))
    command = f"from tests.train.test_group import ring_worker; ring_worker({str(where)!r}, {killed})"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", command], env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    try:
        return [process.wait(120) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
def test_a_killed_process_of_a_ring_ends_the_other_with_an_error(tmp_path: Path) -> None:
    assert ring(tmp_path, killed=True) == [-signal.SIGKILL, 0]
    assert "another process of the run has ended\ncause: [ring] connection" in (tmp_path / "error.txt").read_text()


@pytest.mark.slow
def test_two_processes_in_a_ring_have_the_weights_of_one(tmp_path: Path) -> None:
    assert ring(tmp_path, killed=False) == [0, 0]
    weights, _ = trained(None, CONFIG)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    for name, weight in weights.items():
        np.testing.assert_allclose(first[name], weight, rtol=0, atol=2e-5, err_msg=name)
        np.testing.assert_array_equal(first[name], second[name])
