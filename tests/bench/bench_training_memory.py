"""Peak memory of a training step as rows grow, beside mlx-lm's.

One row of each length through a model of SmolLM-135M's shape in float32, with activation checkpointing: LoRA and all
weights. Every measurement is a process of its own; `resident` is the peak of the process, `arrays` that of MLX's
allocator, and `gradient` that of the allocator until our gradients are computed: what the optimizer takes then, which
is the most for short rows, does not depend on their length. A line is fitted to our peaks; its residual is the greatest
distance of a peak from it, over the peak.
mlx-lm has OpenBLAS under its products, and is measured up to 4,096 tokens. Options: `--lengths 512,1024 --tasks lora
--peers macllm --shape S --off` (`--off`: without checkpointing). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine

LENGTHS, TASKS, PEERS = "512,1024,2048,4096,8192", "lora,full", "macllm,mlx-lm"
COMPARED_KINDS = ("resident", "arrays")
KINDS = (*COMPARED_KINDS, "gradient")
COMPARED = 4096  # tokens, the most at which mlx-lm is measured: its attention grows with their square
GOAL = 0.5  # of mlx-lm's peak at the greatest of these lengths


def measure(peer: str, task: str, folder: str, length: int, checkpoints: bool) -> dict[str, float]:
    """Peaks in megabytes and seconds of one step, in this process."""
    import compare_training
    import mlx.core as mx
    from compare_table import Load
    from compare_worker import peak_bytes

    from macllm.train.passes import Passes

    found: dict[str, float] = {}
    gradients = Passes.gradients

    def noted(*arguments: Any) -> Any:
        result = gradients(*arguments)  # evaluated
        found["gradient"] = mx.get_peak_memory() / 1e6
        return result

    Passes.gradients = noted
    if peer == "mlx-lm":
        compare_training.put_blas_under_mlx()
    make = {"macllm": compare_training.macllm, "mlx-lm": compare_training.mlx_lm}[peer]
    step = make(folder, task == "lora", Load(batch=1, length=length), checkpoints=checkpoints)
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    return {"resident": peak_bytes() / 1e6, "arrays": mx.get_peak_memory() / 1e6, **found, "seconds": seconds}


def alone(*job: object) -> dict[str, float]:
    """`measure` in a process of its own. Raises: RuntimeError with its last error."""
    done = subprocess.run([sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratios(peaks: dict[str, dict[str, float]], task: str, lengths: list[int]) -> dict[str, float]:
    """Our peaks over mlx-lm's."""
    found: dict[str, float] = {}
    for kind in COMPARED_KINDS:
        ours = [peaks.get(f"macllm {task} {length}", {}).get(kind) for length in lengths]
        theirs = [peaks.get(f"mlx-lm {task} {length}", {}).get(kind) for length in lengths]
        for length, mine, other in zip(lengths, ours, theirs, strict=True):
            if mine and other:
                found[f"{task} {length}: {kind} over mlx-lm"] = mine / other
    return found


def fitted(lengths: list[int], peaks: list[float]) -> dict[str, float]:
    """The line through peaks in megabytes, by least squares, and its residual: 0 if they grow linearly."""
    slope, base = np.polyfit(lengths, peaks, 1)
    residual = np.abs(base + slope * np.array(lengths) - peaks) / peaks
    return {"base": float(base), "per_1024_tokens": float(1024 * slope), "residual": float(residual.max())}


def fits(peaks: dict[str, dict[str, float]], task: str, lengths: list[int]) -> dict[str, dict[str, float]]:
    """The lines through our peaks, of three lengths or more."""
    measured = [length for length in lengths if f"macllm {task} {length}" in peaks]
    if len(measured) < 3:
        return {}
    return {
        f"{task}: {kind}": fitted(measured, [peaks[f"macllm {task} {length}"][kind] for length in measured])
        for kind in KINDS
    }


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Peak memory of a training step.")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    for name, value in (("lengths", LENGTHS), ("tasks", TASKS), ("peers", PEERS)):
        parser.add_argument(f"--{name}", default=value)
    parser.add_argument("--shape", default="M", help="S, M or L of shapes.py")
    parser.add_argument("--off", action="store_true", help="without activation checkpointing")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(*json.loads(options.job))))
        return
    from shapes import checkpoint

    folder = checkpoint(options.shape, "f32", Path(tempfile.gettempdir()) / "macllm-bench")
    lengths = [int(length) for length in options.lengths.split(",")]
    peaks: dict[str, dict[str, float]] = {}
    found: dict[str, float] = {}
    lines: dict[str, dict[str, float]] = {}
    for task in options.tasks.split(","):
        for length in lengths:
            for peer in options.peers.split(","):
                if peer != "macllm" and length > COMPARED:
                    continue
                title = f"{peer} {task} {length}"
                try:
                    peaks[title] = alone(peer, task, str(folder), length, not options.off)
                except RuntimeError as error:
                    print(f"{title:<20} {error}", flush=True)
                    continue
                shown = "  ".join(f"{kind} {value:9.1f}" for kind, value in peaks[title].items())
                print(f"{title:<20} {shown}", flush=True)
        found |= ratios(peaks, task, lengths)
        lines |= fits(peaks, task, lengths)
    for title, ratio in found.items():
        longest = max((length for length in lengths if length <= COMPARED), default=0)
        missed = "  MISSED" if title.endswith("mlx-lm") and f" {longest}:" in title and ratio > GOAL else ""
        print(f"{title}: {ratio:.3f}{missed}")
    for title, line in lines.items():
        grown = f"{line['base']:.1f} + {line['per_1024_tokens']:.1f} for each 1024 tokens"
        print(f"{title}: {grown}, off by {line['residual']:.1%}")
    about = {"bench": Path(__file__).stem, **machine(), "shape": options.shape}
    print(json.dumps({**about, "peaks": peaks, "ratios": found, "fits": lines}))


if __name__ == "__main__":
    main()
