"""The index of the benchmarks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_every_benchmark_has_a_line_in_the_index(repository: Path) -> None:
    command = [sys.executable, "-m", "tests.bench"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {path.name for path in HERE.glob("bench_*.py")} | {"compare.py", "traffic.py"} <= lines.keys()
    assert all(0 < len(about) <= 120 for about in lines.values()), lines
