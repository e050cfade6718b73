"""Runs that are killed, interrupted, out of disk or damaged, and resumed: the end of one that was not.

Most are the run of `killed.py`: dropout, random batches, accumulation, validation and snapshots. The others are
`macllm train` on a small recipe, which gets its signals at moments of the clock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from macllm.errors import MacllmError
from macllm.ops.cpu.build import cache_folder
from macllm.train.config import FinetuneConfig
from macllm.train.events import Evaluated, Prepared, Step
from tests.tables.table import Say, Table
from tests.train.recipes import write_recipe
from tests.train.test_contract import VOCAB, lines, masked, masked_events, small_config
from tests.train.toy import ToyLM

REPOSITORY = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KINDS = (
    "at an event", "in an evaluation", "in a write", "before a sync", "after a sync", "before a rename",
    "after a rename", "before a removal", "after a removal",
)  # fmt: skip
DAMAGES = ("a flipped bit", "a truncated file", "no manifest", "an empty state", "a missing file")
TIMEOUT = 120


@dataclass(frozen=True)
class Outcome:
    """The cause and the moment of a stop, and the reason against the end; "" if it is the right one."""

    cause: str
    moment: str
    fault: str


class Masked:
    """The run of `killed.py` in a folder, and its end when nothing stops it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = replace(
            small_config(folder), iters=10, save_every=3, steps_per_eval=4, steps_per_report=3, keep=3
        )
        done = self.work(self.config)
        if done.returncode:
            raise RuntimeError(f"the run that nothing stops ended with {done.returncode}: {done.stderr}")
        self.kinds: list[str] = json.loads(done.stdout.splitlines()[-1])
        self.end = results(self.config)

    def work(self, config: FinetuneConfig, number: int = 0, at: int = -1, limit: int = 0) -> Any:
        """The run in a process of its own."""
        command = [sys.executable, "-m", "tests.tables.killed", json.dumps(config.as_dict())]
        return process([*command, str(int(number)), str(at), str(limit)], self.folder)

    def fresh(self, name: str) -> FinetuneConfig:
        """The settings, in another folder."""
        return replace(self.config, adapter_path=str(self.folder / name))

    def resumed(self, config: FinetuneConfig) -> str:
        """Resume to the end; the reason against it."""
        done = self.work(replace(config, resume=True))
        if done.returncode:
            return f"resuming ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        return "" if results(config) == self.end else "another end"

    def killed(self, name: str, number: signal.Signals, at: int) -> str:
        """Send a signal at a moment, and resume."""
        config = self.fresh(name)
        stopped = self.work(config, number, at)
        if stopped.returncode == 0:
            return "the signal did not end the run"
        return self.resumed(config)

    def limited(self, name: str, limit: int) -> str:
        """Let no file grow beyond a size, and resume without that."""
        config = self.fresh(name)
        stopped = self.work(config, limit=limit)
        if stopped.returncode == 0 or "MacllmError" not in stopped.stderr:
            return f"the run ended with {stopped.returncode}: {stopped.stderr.strip()[-300:]}"
        return self.resumed(config)

    def full(self, name: str, call: int) -> str:
        """Fail from a sync on as a full disk does, and resume."""
        config, sync, calls = self.fresh(name), os.fsync, Counter[str]()

        def limited(descriptor: int) -> None:
            calls["sync"] += 1
            if calls["sync"] >= call:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        with closing(masked_events(config, ToyLM(VOCAB, dropout=0.1))) as events, patch.object(os, "fsync", limited):
            try:
                list(events)
            except MacllmError:
                return self.resumed(config)
        return "the run did not end with an error"

    def damaged(self, name: str, damage: str, random: np.random.Generator) -> str:
        """Damage the newest snapshot of a stopped run, and resume from the one before."""
        config = self.fresh(name)
        masked(config, ToyLM(VOCAB, dropout=0.1), stop=9)
        newest = sorted((Path(config.adapter_path) / "snapshots").glob("step-*"))[-1]
        damage_snapshot(newest, damage, random)
        fault = self.resumed(config)
        begun = lines(config, Prepared)[-1]["first_step"]
        return fault or ("" if 0 < begun < int(newest.name[5:]) else f"resumed from step {begun}")


def damage_snapshot(folder: Path, damage: str, random: np.random.Generator) -> None:
    """Change the files of a snapshot, as a bad disk or a crash may."""
    path = sorted(folder.glob("*.safetensors"))[int(random.integers(len(list(folder.glob("*.safetensors")))))]
    data = bytearray(path.read_bytes())
    match damage:
        case "a flipped bit":
            data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
            path.write_bytes(data)
        case "a truncated file":
            path.write_bytes(data[: int(random.integers(len(data)))])
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "an empty state":
            (folder / "state.json").write_bytes(b"")
        case _:
            path.unlink()


class Recipe:
    """`macllm train` on a small recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_recipe(folder)
        self.lines = len(self.run("whole"))
        self.end = self.digest("whole")

    def command(self, name: str, *more: str) -> list[str]:
        """The command line of a run."""
        output = ["--output", str(self.folder / name), "--json", *more]
        recipe = [] if "--resume" in more else [str(self.folder / "recipe.toml"), "--iters", "30"]
        return [sys.executable, "-m", "macllm", "train", *recipe, *output]

    def run(self, name: str, *more: str) -> list[str]:
        """Run to the end; the lines of its events."""
        done = process(self.command(name, *more), self.folder)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        return done.stdout.splitlines()

    def digest(self, name: str) -> str:
        """Of the weights of the model."""
        return hashlib.sha256((self.folder / name / "model" / "model.safetensors").read_bytes()).hexdigest()

    def killed(self, name: str, number: signal.Signals, after: int, seconds: float) -> str:
        """Send a signal some seconds after a line of events, and resume if the run was not over."""
        command = self.command(name)
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(self.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as run:
            assert run.stdout is not None
            for _ in range(after):
                run.stdout.readline()
            time.sleep(seconds)
            run.send_signal(number)
            run.communicate(timeout=TIMEOUT)
        try:
            if run.returncode:
                self.run(name, "--resume")
        except RuntimeError as error:
            return f"resuming ended with: {error}"
        return "" if self.digest(name) == self.end else "another end"


def environment(folder: Path) -> dict[str, str]:
    """A home of its own, the compiled kernels of the user, and no network."""
    kernels = os.environ.get("MACLLM_NATIVE_CACHE") or str(cache_folder())
    return {**os.environ, "MACLLM_HOME": str(folder / "home"), "MACLLM_NATIVE_CACHE": kernels, "HF_HUB_OFFLINE": "1"}


def process(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own, to its end."""
    settings: dict[str, Any] = {"cwd": REPOSITORY, "env": environment(folder), "timeout": TIMEOUT}
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def results(config: FinetuneConfig) -> tuple[str, list[dict[str, Any]]]:
    """The digest of the exported weights, and the reports and evaluations."""
    said = [{**line, "peak_bytes": 0} for kind in (Step, Evaluated) for line in lines(config, kind)]
    return hashlib.sha256((Path(config.adapter_path) / "weights.safetensors").read_bytes()).hexdigest(), said


def outcomes(count: int, seed: int = 15) -> Iterator[Outcome]:
    """About `count` stopped runs: half of them killed at moments, the others by each other means in turn."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        masked_folder, recipe_folder = Path(place) / "masked", Path(place) / "recipe"
        for folder in (masked_folder, recipe_folder):
            folder.mkdir()
        run, recipe = Masked(masked_folder), Recipe(recipe_folder)
        for number in range(count):
            name, chosen = f"run-{number}", SIGNALS[number % 3] if number % 2 else signal.SIGKILL
            match number % 10:
                case 1 | 6:
                    after, seconds = int(random.integers(1, recipe.lines)), float(random.uniform(0, 0.1))
                    yield Outcome(
                        f"{chosen.name}, macllm train", "by the clock", recipe.killed(name, chosen, after, seconds)
                    )
                case 4:
                    limit = (4000, 9000, 1500)[number // 10 % 3]
                    yield Outcome("disk full", f"file of {limit} bytes", run.limited(name, limit))
                case 8:
                    call = int(random.integers(1, run.kinds.count("before a sync")))
                    yield Outcome("disk full", "at a sync", run.full(name, call))
                case 3 | 9:
                    damage = DAMAGES[number // 5 % len(DAMAGES)]
                    yield Outcome(f"snapshot with {damage}", "resuming", run.damaged(name, damage, random))
                case _:
                    kind = KINDS[number % len(KINDS)]
                    places = [at for at, each in enumerate(run.kinds) if each == kind]
                    at = places[int(random.integers(len(places)))]
                    yield Outcome(chosen.name, kind, run.killed(name, chosen, at))
            shutil.rmtree(masked_folder / name, ignore_errors=True)


def table(quick: bool, say: Say) -> Table:
    """Outcomes of 70 stopped runs by cause and moment; `quick` stops ten."""
    count = 10 if quick else 70
    found: list[Outcome] = []
    for outcome in outcomes(count):
        found.append(outcome)
        say(f"kills: {len(found)} of {count}: {outcome.cause}, {outcome.moment}: {outcome.fault or 'the same end'}")
    groups = dict.fromkeys((each.cause, each.moment) for each in found)
    rows = []
    for cause, moment in sorted(groups):
        some = [each for each in found if (each.cause, each.moment) == (cause, moment)]
        right = [each for each in some if not each.fault]
        rows.append(
            [cause, moment, str(len(some)), str(len(right)), "; ".join(each.fault for each in some if each.fault)]
        )
    right = sum(not each.fault for each in found)
    return Table(
        f"{count} runs stopped and resumed",
        ["stopped by", "moment", "runs", "same end", "faults"],
        rows,
        f"all {count} end with the bytes and the reports of the run that was not stopped",
        right == len(found) == count,
        {"runs": len(found), "same end": right},
    )
