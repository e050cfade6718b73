"""Peak memory of a training step as rows grow, beside mlx-lm's.

One row of each length through a model of SmolLM-135M's shape in float32, with activation checkpointing: LoRA and all
weights. Every measurement is a process of its own; `resident` is the peak of the process, `arrays` that of MLX's
allocator. mlx-lm has OpenBLAS under its products. Options: `--lengths 512,1024 --tasks lora --peers macllm --off`
(`--off`: without checkpointing). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine

LENGTHS, TASKS, PEERS = "512,1024,2048,4096", "lora,full", "macllm,mlx-lm"
GOAL = 0.5  # of mlx-lm's peak at the greatest length


def measure(peer: str, task: str, folder: str, length: int, checkpoints: bool) -> dict[str, float]:
    """Peaks in megabytes and seconds of one step, in this process."""
    import compare_training
    import mlx.core as mx
    from compare_table import Load
    from compare_worker import peak_bytes

    if peer == "mlx-lm":
        compare_training.put_blas_under_mlx()
    make = {"macllm": compare_training.macllm, "mlx-lm": compare_training.mlx_lm}[peer]
    step = make(folder, task == "lora", Load(batch=1, length=length), checkpoints=checkpoints)
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    return {"resident": peak_bytes() / 1e6, "arrays": mx.get_peak_memory() / 1e6, "seconds": seconds}


def alone(*job: object) -> dict[str, float]:
    """`measure` in a process of its own. Raises: RuntimeError with its last error."""
    done = subprocess.run([sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratios(peaks: dict[str, dict[str, float]], task: str, lengths: list[int]) -> dict[str, float]:
    """Growth of our peak per token between the halves of the lengths, and the peak over mlx-lm's."""
    found: dict[str, float] = {}
    for kind in ("resident", "arrays"):
        ours = [peaks.get(f"macllm {task} {length}", {}).get(kind) for length in lengths]
        theirs = [peaks.get(f"mlx-lm {task} {length}", {}).get(kind) for length in lengths]
        if len(lengths) > 2 and all(ours):
            early, late = ((ours[i + 1] - ours[i]) / (lengths[i + 1] - lengths[i]) for i in (0, len(lengths) - 2))
            found[f"{task}: {kind} per token, last over first"] = late / early
        for length, mine, other in zip(lengths, ours, theirs, strict=True):
            if mine and other:
                found[f"{task} {length}: {kind} over mlx-lm"] = mine / other
    return found


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Peak memory of a training step.")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    for name, value in (("lengths", LENGTHS), ("tasks", TASKS), ("peers", PEERS)):
        parser.add_argument(f"--{name}", default=value)
    parser.add_argument("--off", action="store_true", help="without activation checkpointing")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(*json.loads(options.job))))
        return
    from shapes import checkpoint

    folder = checkpoint("M", "f32", Path(tempfile.gettempdir()) / "macllm-bench")
    lengths = [int(length) for length in options.lengths.split(",")]
    peaks: dict[str, dict[str, float]] = {}
    found: dict[str, float] = {}
    for task in options.tasks.split(","):
        for length in lengths:
            for peer in options.peers.split(","):
                title = f"{peer} {task} {length}"
                try:
                    peaks[title] = alone(peer, task, str(folder), length, not options.off)
                except RuntimeError as error:
                    print(f"{title:<20} {error}", flush=True)
                    continue
                shown = "  ".join(f"{kind} {value:9.1f}" for kind, value in peaks[title].items())
                print(f"{title:<20} {shown}", flush=True)
        found |= ratios(peaks, task, lengths)
    for title, ratio in found.items():
        missed = "  MISSED" if title.endswith("mlx-lm") and f" {max(lengths)}:" in title and ratio > GOAL else ""
        print(f"{title}: {ratio:.3f}{missed}")
    print(json.dumps({"bench": Path(__file__).stem, **machine(), "peaks": peaks, "ratios": found}))


if __name__ == "__main__":
    main()
