"""Measurements for benchmarks: contestants by turns, medians and spread, a last line of JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Series:
    """Measurements of one contestant, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median measurement."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / 2 / self.median


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = 1) -> dict[str, Series]:
    """Measurements of each contestant; every round runs all once, so that slow phases affect all."""
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_ups + rounds):
        for name, run in contestants.items():
            value = run()
            if turn >= warm_ups:
                seen[name].append(value)
    return {name: Series(tuple(values)) for name, values in seen.items()}


def print_table(results: Mapping[str, Series], unit: str) -> None:
    """One line for each contestant."""
    width = max(len(name) for name in results)
    for name, series in results.items():
        print(f"{name:<{width}}  {series.median:9.4g} {unit}  ±{series.spread:4.0%}  ({len(series.values)} runs)")


def print_json(bench: str, results: Mapping[str, Mapping[str, Series]], ratios: Mapping[str, float]) -> None:
    """Print the last line: machine, medians and spreads by table, and ratios."""
    tables = {
        table: {name: {"median": series.median, "spread": series.spread} for name, series in rows.items()}
        for table, rows in results.items()
    }
    print(json.dumps({"bench": bench, **machine(), "results": tables, "ratios": dict(ratios)}))


def machine() -> dict[str, object]:
    """Platform, versions and commit, on which results depend."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "commit": commit.stdout.strip(),
    }


def seconds_of(command: Sequence[str]) -> float:
    """Seconds of a command."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def cpu_seconds_of(command: Sequence[str]) -> float:
    """Processor seconds of a command, which depend little on other load."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds_of(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_text(command: Sequence[str], text: bytes | None = None) -> float:
    """Seconds until a command writes to stdout; with `text`, until it writes more after `text`."""
    began, seen, elapsed = time.perf_counter(), b"", 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(4096):
            seen += chunk
            if not elapsed and (text is None or seen.partition(text)[2]):
                elapsed = time.perf_counter() - began
    if process.returncode or not elapsed:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} and said {seen!r}")
    return elapsed
