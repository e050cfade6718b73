"""macllm beside its peers on the same weights: inference, training, growth with the context.

`python tests/bench/compare.py [--shapes S,M,L] [--widths f32,bf16,q8,q4] [--tasks inference,lora,full,growth]
[--peers ...] [--rounds 3]`. Every measurement is a process of its own; in each round all contestants take their turn,
and medians are compared. The last line is one JSON object.

- mlx-lm, and transformers with torch and peft: `pip install macllm[parity]`. mlx-lm computes less, see `load_of`, in
  few rounds; the peak of its training is that of the whole batch with OpenBLAS under MLX.
- llama.cpp: build `llama-bench` and `llama-quantize` (`cmake -B build -DGGML_NATIVE=ON && cmake --build build`), name
  their folder with --llama-cpp, and `pip install gguf`. Beside float32 and bfloat16 stands its f16, beside 8 and 4
  bits its Q8_0 and Q4_0, the tied head as well.

A peer that is not installed is a row that says so. Two options change what is compared:

- `--model FOLDER`: that checkpoint (llama or qwen2, tied head) instead of the shapes.
- `--against VENV`: this checkout with another that is installed in a virtual environment, see `compare_against.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compare_against import against
from compare_table import DECODE, PEAK, PEERS, PROMPT, TASKS, WIDTHS, Load, Table, goals, line, load_of, ratios
from shapes import SHAPES, checkpoint, gguf_file, trained
from timing import Series, machine

Run = Callable[[], dict[str, float]]
STOCK_ROUNDS = {"S": 2, "M": 1, "L": 1}


def measured(command: list[str]) -> dict[str, float]:
    """The last line of a worker's output, decoded. Raises: RuntimeError with its last error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(job: dict[str, Any]) -> dict[str, float]:
    """One measurement of macllm, mlx-lm or torch."""
    return measured([sys.executable, str(Path(__file__).with_name("compare_worker.py")), json.dumps(job)])


def stock_training(job: dict[str, Any], whole: Load) -> dict[str, float]:
    """One measurement of mlx-lm's training: the speed of a smaller load, the memory of the whole."""
    blas = {**job, "with_blas": True, "load": {**asdict(whole), "seconds": 0.0}}
    return {**worker(job), PEAK: worker(blas)[PEAK]}


def llama_bench(tools: Path, file: Path, load: Load) -> dict[str, float]:
    """One measurement of llama.cpp: a prompt, and decoding after it."""
    command = [str(tools / "llama-bench"), "-m", str(file), "-t", str(cores()), "-r", "2", "-o", "json"]
    measured: dict[str, float] = {}
    peak = 0
    for measure, work in ((PROMPT, (load.prompt, 0, 0)), (DECODE, (0, load.new, load.prompt))):
        amounts = [part for flag, amount in zip(("-p", "-n", "-d"), work, strict=True) for part in (flag, str(amount))]
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen([*command, *amounts], stdout=said, stderr=subprocess.DEVNULL)
            while process.poll() is None:
                peak = max(peak, peak_of(process.pid))
                time.sleep(0.02)
            if process.returncode:
                raise RuntimeError(f"llama-bench ended with {process.returncode}")
            said.seek(0)
            measured[measure] = json.load(said)[0]["avg_ts"]
    return {**measured, **({PEAK: peak / 1e6} if peak else {})}


def peak_of(process: int) -> int:
    """Peak memory of a process in bytes; 0 if it cannot be read."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    value = status.partition("VmHWM:")[2].split()
    return 1024 * int(value[0]) if value else 0


def cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def contestant(peer: str, table: Table, options: argparse.Namespace) -> tuple[Run | None, str]:
    """The function that measures a peer once, or None if the peer is absent; and a remark."""
    load = load_of(peer, table, options.load)
    if peer == "llama.cpp":
        if table.task != "inference":
            return None, "does not train"
        if options.llama_cpp is None or not (options.llama_cpp / "llama-bench").exists():
            return None, "not installed: see --llama-cpp"
        if find_spec("gguf") is None:
            return None, "not installed: pip install gguf"
        width = {"q8": "Q8_0", "q4": "Q4_0"}.get(table.width, "F16")
        file = gguf_file(table.shape, width, options.cache, options.llama_cpp / "llama-quantize")
        return partial(llama_bench, options.llama_cpp, file, load), width
    if peer == "torch" and table.width in ("q8", "q4"):
        return None, f"has no {table.width}"
    for package in {"macllm": ["macllm"], "mlx-lm": ["mlx_lm"], "torch": ["torch", "transformers", "peft"]}[peer]:
        if find_spec(package) is None:
            return None, f"not installed: pip install {package}"
    folder = checkpoint(table.shape, table.width, options.cache)
    job = {"peer": peer, "task": table.task, "folder": str(folder), "load": asdict(load)}
    if peer == "mlx-lm" and table.task != "inference":
        return partial(stock_training, job, options.load), f"{load.batch} x {load.length} tokens"
    cut = load != options.load
    return partial(worker, job), f"prompt of {load.prompt}, {load.new} new" if cut else ""


def compare(table: Table, options: argparse.Namespace) -> tuple[dict[str, dict[str, Series]], dict[str, str]]:
    """Rows of a table, and the reasons of absent peers; printed."""
    load = options.load
    amount = f"prompt of {load.prompt}, {load.new} new tokens"
    print(f"\n{table.title}" + (f": {amount}" if table.task == "inference" else ""), flush=True)
    peers = [peer for peer in options.peers if table.task != "growth" or peer == "macllm"]
    found = {peer: contestant(peer, table, options) for peer in peers}
    notes = {peer: note for peer, (_, note) in found.items()}
    absent = {peer: note for peer, (run, note) in found.items() if run is None}
    runs: dict[str, dict[str, list[float]]] = {peer: {} for peer in peers}
    for turn in range(options.rounds):
        for peer, (run, _note) in found.items():
            if run is None or peer in absent or (peer == "mlx-lm" and turn >= STOCK_ROUNDS.get(table.shape, 1)):
                continue
            try:
                result = run()
            except RuntimeError as error:
                absent[peer] = f"failed: {error}"
                continue
            for measure, value in result.items():
                runs[peer].setdefault(measure, []).append(value)
    rows = {p: {m: Series(tuple(v)) for m, v in runs[p].items()} for p in peers if p not in absent}
    for peer in peers:
        print(line(peer, rows.get(peer, {}), notes[peer] if peer in rows else absent[peer]), flush=True)
    return rows, absent


def read_bandwidth() -> float:
    """Read bandwidth of this machine in bytes per second."""
    from macllm.evaluate.machine import read_bytes_per_second

    return read_bytes_per_second()


def main() -> None:
    """Read the command line, measure, print the tables, the goals, and a line of JSON."""
    parser = argparse.ArgumentParser(description="macllm beside its peers.")
    for name, all_of_them in (("shapes", tuple(SHAPES)), ("widths", WIDTHS), ("tasks", TASKS), ("peers", PEERS)):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=list(all_of_them))
    parser.add_argument("--rounds", type=int, default=3)
    for name, value in asdict(Load()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--model", type=Path, help="compare on this checkpoint instead of the shapes")
    parser.add_argument("--against", type=Path, metavar="VENV", help="compare with the commit installed there")
    parser.add_argument("--llama-cpp", type=Path, help="folder with llama-bench and llama-quantize")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "macllm-bench")
    options = parser.parse_args()
    options.load = replace(Load(), **{name: getattr(options, name) for name in asdict(Load())})
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.model is not None:
        SHAPES[options.model.resolve().name] = trained(options.model)
        options.shapes = [options.model.resolve().name]
    every = (Table(s, w, t) for s in options.shapes for t in options.tasks for w in options.widths)
    asked = [table for table in every if table.exists]
    if options.against is not None:
        found = against(options.against, asked, lambda t: checkpoint(t.shape, t.width, options.cache), options)
        print(json.dumps({"bench": Path(__file__).stem, **machine(), **found}))
        return
    results = {table: compare(table, options) for table in asked}
    bandwidth = read_bandwidth() if any(t.shape == "L" and t.task == "inference" for t in asked) else None
    reached = [goal for table in asked for goal in goals(table, results[table][0], bandwidth)]
    print("\nMust reach:", *reached, sep="\n")
    print(
        json.dumps(
            {
                "bench": Path(__file__).stem,
                **machine(),
                "read_bytes_per_second": bandwidth,
                "results": {
                    t.title: {
                        p: {m: {"median": s.median, "spread": s.spread} for m, s in r.items()} for p, r in rows.items()
                    }
                    | absent
                    for t, (rows, absent) in results.items()
                },
                "goals": {
                    g.name: {"value": g.value, "spread": g.spread, "bound": g.bound, "met": g.met} for g in reached
                },
                "ratios": {k: v for t, (rows, _) in results.items() for k, v in ratios(t, rows).items()},
            }
        )
    )


if __name__ == "__main__":
    main()
