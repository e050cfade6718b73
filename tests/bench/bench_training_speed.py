"""Speed of a training step, beside transformers' model with torch and peft.

One AdamW step in float32 on a model of SmolLM-135M's shape, LoRA and all weights, on the same rows and with the same
number of threads. Both contestants live in processes of their own and take turns, so a round is a pair of steps next to
each other; a ratio is the median over the rounds of torch's seconds over ours. Options: `--loads 4x128,1x512 --tasks
lora,full --rounds 7`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from timing import Series, machine

PEERS = ("macllm", "torch")
LEAST = 1.0  # torch's seconds over ours


class Contestant:
    """A process that does a step for each line that it reads."""

    def __init__(self, peer: str, task: str, folder: Path, load: str) -> None:
        job = json.dumps([peer, task, str(folder), *map(int, load.split("x"))])
        command = [sys.executable, __file__, "--job", job]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def step(self) -> float:
        """Seconds of its next step. Raises: RuntimeError if it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"{self._process.args} ended")
        return float(said)


def work(peer: str, task: str, folder: str, batch: int, length: int) -> None:
    """Steps on demand, in this process."""
    from compare_table import Load
    from compare_training import STEPS

    step = STEPS[peer](folder, task == "lora", Load(batch=batch, length=length))
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


def rounds(task: str, folder: Path, load: str, count: int) -> dict[str, Series]:
    """Seconds of the steps of each contestant, after one to warm up."""
    seen: dict[str, list[float]] = {peer: [] for peer in PEERS}
    with ExitStack() as stack:
        living = {peer: stack.enter_context(Contestant(peer, task, folder, load)) for peer in PEERS}
        for turn in range(count + 1):
            for peer in PEERS if turn % 2 else reversed(PEERS):
                seconds = living[peer].step()
                if turn:
                    seen[peer].append(seconds)
    return {peer: Series(tuple(values)) for peer, values in seen.items()}


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Speed of a training step beside torch and peft.")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--loads", default="4x128,1x512")
    parser.add_argument("--tasks", default="lora,full")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.job:
        work(*json.loads(options.job))
        return
    from shapes import checkpoint

    folder = checkpoint("M", "f32", Path(tempfile.gettempdir()) / "macllm-bench")
    found: dict[str, dict[str, object]] = {}
    for task in options.tasks.split(","):
        for load in options.loads.split(","):
            seconds = rounds(task, folder, load, options.rounds)
            pairs = zip(*(seconds[peer].values for peer in PEERS), strict=True)
            ratio = Series(tuple(theirs / ours for ours, theirs in pairs))
            low, high, missed = min(ratio.values), max(ratio.values), "" if ratio.median >= LEAST else "  MISSED"
            medians = "  ".join(
                f"{peer} {series.median:.3f} s ±{series.spread:.0%}" for peer, series in seconds.items()
            )
            print(
                f"{task:<5} {load:<6} {medians}  ratio {ratio.median:.3f} ({low:.3f} to {high:.3f}){missed}", flush=True
            )
            each = {peer: series.median for peer, series in seconds.items()}
            found[f"{task} {load}"] = {**each, "ratio": ratio.median, "least": low, "greatest": high}
    print(json.dumps({"bench": Path(__file__).stem, **machine(), "steps": found}))


if __name__ == "__main__":
    main()
