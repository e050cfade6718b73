"""Ratios of this checkout to another commit, for `compare.py --against VENV`.

Each commit runs its own `compare_worker.py` in its own virtual environment, with its own kernels, compiled before the
first measurement. The two take turns; a ratio is the median of the ratios of the rounds. Measured are decoding, prompts
and peak memory (tasks "inference" and "lora"), and the seconds from `python -m macllm generate` to its first token.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from compare_table import DECODE, PEAK, PROMPT, TRAIN, Load, Table
from timing import Series

FIRST = "first token s"
LEAST, MOST_MEMORY = 0.97, 1.02
FASTER_IS_MORE = (PROMPT, DECODE, TRAIN)
QUIET_CORES = 0.15
"""Largest load by other processes during a measurement, in cores; above it, measuring is repeated."""


class Ratio(NamedTuple):
    """Speed or memory of this checkout over the other's, round by round."""

    name: str
    rounds: Series

    @property
    def met(self) -> bool:
        """True for a median within the bound."""
        bound = MOST_MEMORY if self.name.endswith(PEAK) else LEAST
        return self.rounds.median <= bound if self.name.endswith(PEAK) else self.rounds.median >= bound

    def __str__(self) -> str:
        low, high = min(self.rounds.values), max(self.rounds.values)
        verdict = "met   " if self.met else "MISSED"
        return (
            f"{verdict}  {self.name:<44} {self.rounds.median:6.3f} ±{self.rounds.spread:3.0%}  {low:.3f} to {high:.3f}"
        )


@dataclass(frozen=True)
class Side:
    """An installed checkout."""

    python: Path
    root: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of its processes: separate caches of kernels and bytecode, no downloads."""
        drop = ("MACLLM_NATIVE_CACHE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if name not in drop}
        return {**kept, "MACLLM_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str) -> str:
        """Output of its Python, run in its root. Raises: RuntimeError with the last error."""
        command = [str(self.python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.root, env=self.environment)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            raise RuntimeError(f"{self.root}: {said[-1]}")
        return done.stdout

    def work(self, job: dict[str, Any]) -> dict[str, float]:
        """Measurements of one job by this checkout's worker."""
        return json.loads(self.run("tests/bench/compare_worker.py", json.dumps(job)).strip().splitlines()[-1])

    def first_token(self, folder: Path, load: Load) -> dict[str, float]:
        """Seconds of a whole process that loads the model and answers with one token."""
        words = " ".join(f"w{(i * 7919 + 13) % 8000}" for i in range(load.new))
        arguments = ("-m", "macllm", "generate", "-m", str(folder), "--raw", "-n", "1", "--temperature", "0", words)
        began = time.perf_counter()
        self.run(*arguments)
        return {FIRST: time.perf_counter() - began}

    def commit(self) -> str:
        """Its abbreviated commit."""
        command = ["git", "-C", str(self.root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def side(python: Path, home: Path) -> Side:
    """The checkout whose package this interpreter imports, kernels compiled. Raises: RuntimeError."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-c", "import macllm; print(macllm.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)
    root = Path(done.stdout.strip()).parent.parent
    if done.returncode or not (root / "tests/bench/compare_worker.py").exists():
        raise RuntimeError(f"{python} has no macllm installed from a checkout (pip install -e)")
    found = Side(python, root, home)
    if sys.platform == "linux":
        found.run("-m", "macllm", "doctor", "--build")
    return found


def foreign_cores(measure: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    """A measurement, and the cores that other processes used meanwhile (0 off Linux)."""
    began, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
    found = measure()
    elapsed = time.perf_counter() - began
    return found, max(0.0, (_busy_seconds() - busy) - (_own_seconds() - own)) / elapsed


def _busy_seconds() -> float:
    """Processor seconds used on this machine so far, stolen time included."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def quiet(measure: Callable[[], dict[str, float]], tries: int = 3) -> tuple[dict[str, float], float]:
    """The measurement of the quietest of `tries`, and the foreign cores during it."""
    found = []
    for _ in range(tries):
        found.append(foreign_cores(measure))
        if found[-1][1] < QUIET_CORES:
            break
    return min(found, key=lambda one: one[1])


def by_round(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratios of a measure by round; seconds are compared as speeds."""
    pairs = zip(ours, theirs, strict=True)
    return Ratio(name, Series(tuple(b / a if name.endswith(FIRST) else a / b for a, b in pairs)))


def measures(table: Table, folder: Path, load: Load) -> list[Callable[[Side], dict[str, float]]]:
    """The measurements of one round of a table."""
    job = {"peer": "macllm", "task": table.task, "folder": str(folder), "load": asdict(load)}
    found: list[Callable[[Side], dict[str, float]]] = [lambda one: one.work(job)]
    if table.task == "inference":
        found.append(lambda one: one.first_token(folder, load))
    return found


def compare(table: Table, folder: Path, load: Load, sides: tuple[Side, Side], rounds: int) -> list[Ratio]:
    """The ratios of a table; printed."""
    runs: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    loudest = 0.0
    for _ in range(rounds):
        for seen, one in zip(runs, sides, strict=True):
            for measure in measures(table, folder, load):
                result, foreign = quiet(lambda measure=measure, one=one: measure(one))
                loudest = max(loudest, foreign)
                for name, value in result.items():
                    seen.setdefault(name, []).append(value)
    shown = [name for name in (PROMPT, DECODE, FIRST, TRAIN, PEAK) if name in runs[0] and name in runs[1]]
    found = [by_round(f"{table.title}: {name}", runs[0][name], runs[1][name]) for name in shown]
    print(f"\n{table.title}: {rounds} rounds, at most {loudest:.2f} foreign cores")
    for name, ratio in zip(shown, found, strict=True):
        medians = (statistics.median(seen[name]) for seen in runs)
        print("{}   here {:.4g}, there {:.4g}".format(ratio, *medians), flush=True)
    return found


def against(other: Path, tables: Sequence[Table], folders: Callable[[Table], Path], options: Any) -> dict[str, Any]:
    """Compare with the checkout installed in the virtual environment `other`. Returns fields for JSON."""
    here = side(Path(sys.executable), options.cache / "home-here")
    there = side(other.absolute() / "bin" / "python", options.cache / "home-there")
    print(f"{here.commit()} over {there.commit()}, by turns")
    found = [r for t in tables for r in compare(t, folders(t), options.load, (here, there), options.rounds)]
    return {
        "against": there.commit(),
        "rounds": options.rounds,
        "ratios": {r.name: {"median": r.rounds.median, "spread": r.rounds.spread, "met": r.met} for r in found},
        "met": all(r.met for r in found),
    }
