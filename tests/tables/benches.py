"""Memory and speed of a training step beside mlx-lm and torch with peft, from `tests/bench`.

Both are of a model of SmolLM-135M's shape in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.tables.table import Say, Table

BENCHES = Path(__file__).resolve().parents[1] / "bench"
MEMORY_GOAL = 0.5  # of mlx-lm's peak at the greatest length
OFF_A_LINE = 0.08  # of a peak of the gradients' arrays
SPEED_GOAL = 1.0  # torch's seconds over ours


def bench(name: str, *options: str, say: Say) -> dict[str, Any]:
    """The last line of a benchmark, decoded. Raises: RuntimeError if it fails."""
    command = [sys.executable, str(BENCHES / f"{name}.py"), *options]
    last = ""
    with subprocess.Popen(command, cwd=BENCHES, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            last = text.strip() or last
            if not last.startswith("{"):
                say(f"{name}: {last}")
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return json.loads(last)


def memory(quick: bool, say: Say) -> Table:
    """Peaks of one step as rows grow; `quick` measures one."""
    few = ("--lengths", "64", "--tasks", "lora", "--peers", "macllm") if quick else ()
    found = bench("bench_training_memory", *few, say=say)
    peaks, ratios = found["peaks"], found["ratios"]
    rows = []
    for task, length in dict.fromkeys(tuple(title.split()[-2:]) for title in peaks):
        cells = [task, length]
        for kind in ("resident", "arrays"):
            ours, theirs = (peaks.get(f"{peer} {task} {length}", {}).get(kind) for peer in ("macllm", "mlx-lm"))
            ratio = ratios.get(f"{task} {length}: {kind} over mlx-lm")
            cells += [f"{value:,.0f} MB" if value else "" for value in (ours, theirs)]
            cells.append(f"{ratio:.2f}" if ratio else "")
        rows.append(cells)
    measured = [(peer != "macllm", int(length)) for peer, _, length in map(str.split, peaks)]
    longest = max(measured)[1]  # of mlx-lm, if it was measured
    compared = [ratio for title, ratio in ratios.items() if f" {longest}: " in title]
    residuals = {title: fit["residual"] for title, fit in found["fits"].items()}
    rows += [[f"{title}, off a line", "", "", "", f"{part:.1%}", "", "", ""] for title, part in residuals.items()]
    gradients = [part for title, part in residuals.items() if title.endswith("gradient")]
    held = bool(compared and gradients) and max(compared) <= MEMORY_GOAL and max(gradients) <= OFF_A_LINE
    return Table(
        "Peak memory of a training step, layers checkpointed, batch 1",
        ["task", "tokens", "process", "mlx-lm's", "ratio", "arrays", "mlx-lm's", "ratio"],
        rows,
        f"{MEMORY_GOAL} of mlx-lm's at {longest:,} tokens; the gradients' arrays at most {OFF_A_LINE:.0%} off a line",
        None if quick else held,
        found,
    )


def speed(quick: bool, say: Say) -> Table:
    """Seconds of a step in paired rounds; `quick` does one short round."""
    few = ("--loads", "1x32", "--tasks", "lora", "--rounds", "1") if quick else ()
    found = bench("bench_training_speed", *few, say=say)
    rows = [
        [title, *(f"{step[name]:.3f} s" for name in ("macllm", "torch")), *(f"{step[name]:.2f}" for name in _RATIOS)]
        for title, step in found["steps"].items()
    ]
    return Table(
        "Seconds of a training step beside torch and peft, paired rounds",
        ["load", "macllm", "torch", "torch over macllm", "least", "greatest"],
        rows,
        f"median ratio of {SPEED_GOAL} or more for every load",
        None if quick else all(step["ratio"] >= SPEED_GOAL for step in found["steps"].values()),
        found,
    )


_RATIOS = ("ratio", "least", "greatest")
