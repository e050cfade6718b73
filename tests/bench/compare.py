"""macllm beside its peers on the same random weights: tokens per second of prompts and of decoding, and peak memory.

`python tests/bench/compare.py [--shapes S,M,L] [--widths f32,q8,q4] [--rounds 5]`. Every measurement is a process of
its own; in each round all contestants take their turn, and medians are compared. The last line is one JSON object.

- mlx-lm, and transformers with torch: `pip install macllm[parity]`.
- llama.cpp: build `llama-bench` and `llama-quantize` (`cmake -B build -DGGML_NATIVE=ON && cmake --build build`), name
  their folder with --llama-cpp, and `pip install gguf`.

A peer that is not there is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shapes import SHAPES, checkpoint, gguf_file
from timing import Series, machine

PEERS = ("macllm", "mlx-lm", "torch", "llama.cpp")
# What a peer calls a width; none where it has no such thing.
WIDTHS = {"f32": {"llama.cpp": "f16"}, "bf16": {"llama.cpp": "f16"}, "q8": {"torch": ""}, "q4": {"torch": ""}}
MEASURES = ("prompt tokens/s", "decode tokens/s", "peak MB")


@dataclass(frozen=True)
class Load:
    """How much is computed, and for whom it is too much: tokens of the prompt and of the completion."""

    prompt: int
    new: int


def work(peer: str, width: str, load: Load) -> Load:
    """The load, cut down for stock MLX's quantized products, which take seconds for a token."""
    slow = peer == "mlx-lm" and width in ("q8", "q4")
    return Load(min(load.prompt, 16), min(load.new, 4)) if slow else load


def measured(command: list[str]) -> dict[str, float]:
    """What a worker prints on its last line. Raises: RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def python_worker(peer: str, folder: Path, load: Load) -> dict[str, float]:
    """One measurement of macllm, mlx-lm or torch."""
    worker = Path(__file__).with_name("compare_worker.py")
    return measured([sys.executable, str(worker), peer, str(folder), str(load.prompt), str(load.new)])


def llama_bench(tools: Path, file: Path, load: Load) -> dict[str, float]:
    """One measurement of llama.cpp."""
    command = [str(tools / "llama-bench"), "-m", str(file), "-t", str(cores()), "-r", "1", "-o", "json"]
    command += ["-p", str(load.prompt), "-n", str(load.new)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    speeds = {("decode" if row["n_gen"] else "prompt"): row["avg_ts"] for row in rows}
    return {"prompt tokens/s": speeds["prompt"], "decode tokens/s": speeds["decode"]}


def cores() -> int:
    """Cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def contestant(
    peer: str, name: str, width: str, options: argparse.Namespace
) -> tuple[Callable[[], dict[str, float]] | None, str]:
    """What runs one measurement of a peer, or why there is none."""
    theirs = WIDTHS[width].get(peer, width)
    load = work(peer, width, Load(options.prompt, options.new))
    if not theirs:
        return None, f"has no {width}"
    if peer == "llama.cpp":
        if options.llama_cpp is None or not (options.llama_cpp / "llama-bench").exists():
            return None, "not installed: see --llama-cpp"
        if find_spec("gguf") is None:
            return None, "not installed: pip install gguf"
        file = gguf_file(name, theirs, options.cache, options.llama_cpp / "llama-quantize")
        return partial(llama_bench, options.llama_cpp, file, load), theirs
    package = {"macllm": "macllm", "mlx-lm": "mlx_lm", "torch": "torch"}[peer]
    if find_spec(package) is None:
        return None, f"not installed: pip install {peer}"
    return partial(python_worker, peer, checkpoint(name, theirs, options.cache), load), theirs


def compare(name: str, width: str, options: argparse.Namespace) -> dict[str, Any]:
    """The table of one shape and width, printed and as numbers."""
    print(f"\n{name} {width}: prompt of {options.prompt}, {options.new} new tokens", flush=True)
    found = {peer: contestant(peer, name, width, options) for peer in options.peers}
    runs: dict[str, dict[str, list[float]]] = {peer: {} for peer in options.peers}
    absent = {peer: note for peer, (run, note) in found.items() if run is None}
    for _ in range(options.rounds):
        for peer, (run, _note) in found.items():
            if run is None or peer in absent:
                continue
            try:
                result = run()
            except (RuntimeError, subprocess.CalledProcessError) as error:
                absent[peer] = f"failed: {error}"
                continue
            for measure, value in result.items():
                runs[peer].setdefault(measure, []).append(value)
    rows: dict[str, Any] = {}
    for peer in options.peers:
        if peer in absent:
            print(f"{peer:<10} {absent[peer]}")
            rows[peer] = absent[peer]
            continue
        series = {measure: Series(tuple(values)) for measure, values in runs[peer].items()}
        shown = (f"{m} {series[m].median:9.1f} ±{series[m].spread:3.0%}" for m in MEASURES if m in series)
        print(f"{peer:<10} {'   '.join(shown)}", flush=True)
        rows[peer] = {m: {"median": s.median, "spread": s.spread} for m, s in series.items()}
    return rows


def ratios(tables: dict[str, dict[str, Any]]) -> dict[str, float]:
    """macllm over each peer, by table and measure."""
    found = {}
    for table, rows in tables.items():
        ours = rows.get("macllm")
        for peer, theirs in rows.items():
            if peer != "macllm" and isinstance(ours, dict) and isinstance(theirs, dict):
                for measure in MEASURES[:2]:
                    ratio = ours[measure]["median"] / theirs[measure]["median"]
                    found[f"{table}, {measure}, macllm over {peer}"] = ratio
    return found


def main() -> None:
    """Read the command line, measure, print the tables and a line of JSON."""
    parser = argparse.ArgumentParser(description="macllm beside its peers.")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--widths", type=lambda text: text.split(","), default=["f32", "q8", "q4"])
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--llama-cpp", type=Path, help="folder with llama-bench and llama-quantize")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "macllm-bench")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    tables = {f"{name} {width}": compare(name, width, options) for name in options.shapes for width in options.widths}
    print(json.dumps({"bench": Path(__file__).stem, **machine(), "results": tables, "ratios": ratios(tables)}))


if __name__ == "__main__":
    main()
