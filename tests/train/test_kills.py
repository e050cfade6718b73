"""Runs that are killed or interrupted at seeded moments, also in a save or an evaluation, and resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macllm.errors import MacllmError
from macllm.train.config import FinetuneConfig
from macllm.train.events import Evaluated, Prepared, Step
from tests.train.test_contract import VOCAB, lines, masked, masked_events, small_config
from tests.train.toy import ToyLM

# Every event, fsync and rename after the start is a moment; at one of them the process sends itself a signal.
WORKER = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from macllm.train.config import FinetuneConfig
from macllm.train.events import Prepared
from tests.train.test_contract import VOCAB, masked_events
from tests.train.toy import ToyLM

settings, number, at = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
moments, begun = 0, False

def moment():
    global moments
    moments += begun
    if begun and moments == at:
        os.kill(os.getpid(), number)

def before(function):
    def noted(*arguments):
        moment()
        return function(*arguments)
    return noted

def interrupt(*_):
    raise KeyboardInterrupt

os.fsync, Path.rename = before(os.fsync), before(Path.rename)
signal.signal(signal.SIGTERM, interrupt)
signal.signal(signal.SIGINT, interrupt)
for event in masked_events(FinetuneConfig(**settings), ToyLM(VOCAB, dropout=0.1)):
    begun = begun or isinstance(event, Prepared)
    moment()
print(moments)
"""


def work(repository: Path, config: FinetuneConfig, number: int = 0, at: int = -1) -> subprocess.CompletedProcess[str]:
    settings = json.dumps(config.as_dict())
    command = [sys.executable, "-c", WORKER, settings, str(number), str(at)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


def results(config: FinetuneConfig) -> tuple[str, list[dict[str, Any]]]:
    """The digest of the exported weights, and the reports and evaluations."""
    said = [{**line, "peak_bytes": 0} for kind in (Step, Evaluated) for line in lines(config, kind)]
    return hashlib.sha256((Path(config.adapter_path) / "weights.safetensors").read_bytes()).hexdigest(), said


@pytest.mark.slow
def test_a_run_killed_or_interrupted_at_any_moment_ends_as_one_that_was_not(tmp_path: Path, repository: Path) -> None:
    config = replace(small_config(tmp_path), iters=10, save_every=3, steps_per_eval=4, steps_per_report=3)
    whole = work(repository, config)
    assert whole.returncode == 0, whole.stderr
    moments, random = int(whole.stdout), np.random.default_rng(15)
    for seed in range(5):
        for number in (signal.SIGKILL, (signal.SIGTERM, signal.SIGINT)[seed % 2]):
            at = int(random.integers(1, moments))
            stopped = replace(config, adapter_path=str(tmp_path / f"{seed}-{number.name}"))
            killed = work(repository, stopped, number, at)
            assert killed.returncode != 0
            resumed = work(repository, replace(stopped, resume=True))
            assert resumed.returncode == 0, (number, at, resumed.stderr)
            assert results(stopped) == results(config), (number, at)


def test_a_full_disk_ends_a_run_with_an_error_and_resuming_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config(tmp_path), iters=6, save_every=2, steps_per_eval=3, steps_per_report=3)
    masked(config, ToyLM(VOCAB, dropout=0.1))
    sync = os.fsync
    for full_from in (1, 3, 8, 13, 22):
        stopped, calls = replace(config, adapter_path=str(tmp_path / f"full-{full_from}")), 0

        def limited(descriptor: int, full_from: int = full_from) -> None:
            nonlocal calls
            calls += 1
            if calls >= full_from:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        with closing(masked_events(stopped, ToyLM(VOCAB, dropout=0.1))) as events:
            next(event for event in events if isinstance(event, Prepared))
            monkeypatch.setattr(os, "fsync", limited)
            with pytest.raises(MacllmError, match=r"No space left|cannot write"):
                list(events)
            monkeypatch.setattr(os, "fsync", sync)
        masked(replace(stopped, resume=True), ToyLM(VOCAB, dropout=0.1))
        assert results(stopped) == results(config)
