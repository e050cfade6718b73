"""`python -m tests.simulator FILE...`: what is wrong with Metal kernels, and what they read and write.

A Python FILE is run; each kernel that it asks `mx.fast.metal_kernel` for, or that macllm dispatches, runs in the simulator.
A `.metal` FILE is looked through for what Metal's compiler would refuse. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from .intercept import simulated
from .lint import findings
from .run import Result


def main() -> int:
    """Read the arguments and look at each file."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a Python script, or a .metal file")
    wrong = False
    for path in parser.parse_args().files:
        wrong |= _read(path) if path.suffix == ".metal" else _run(path)
    return int(wrong)


def _read(path: Path) -> bool:
    found = findings(path.read_text(encoding="utf-8"))
    print(f"{path}: {'passes' if not found else 'breaks rules'}")
    for finding in found:
        print(f"  {finding}")
    return bool(found)


def _run(path: Path) -> bool:
    sys.argv = [str(path)]
    with simulated() as log:
        runpy.run_path(str(path), run_name="__main__")
    for name, result in log.dispatches:
        print(f"{name}: {'FAILS' if result.faults else 'passes'}: {_counts(result)}")
        for fault in result.faults:
            print(f"  {fault}")
        for buffer, traffic in result.traffic.items():
            print(
                f"  {buffer:<16} reads {traffic.read_bytes:>12,} bytes, writes {traffic.written_bytes:>12,}, "
                f"touches {traffic.lines:>9,} lines of 128"
            )
    if not log.dispatches:
        print(f"{path}: no kernel was dispatched")
    return bool(log.faults) or not log.dispatches


def _counts(result: Result) -> str:
    return (
        f"{result.simd_operations:,} simd operations, {result.barriers:,} barriers, "
        f"{result.threadgroup_bytes:,} bytes of threadgroup memory"
    )


if __name__ == "__main__":
    sys.exit(main())
