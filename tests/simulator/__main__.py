"""Faults and memory traffic of Metal kernels, found without a GPU.

A Python FILE is run: its kernels, from `mx.fast.metal_kernel` or macllm, run in the simulator. A .metal FILE is checked
for code that Metal's compiler would reject.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from .compile import CompileError
from .intercept import Log, simulated
from .lint import findings, without_prefixes
from .run import Result, RunOptions

AFTER = """\
A dispatch runs forwards, backwards, in a random order, and once more with the lanes of matrices permuted; --quick runs
it once. A fault has a kind, a message, and the line of the kernel's source.

Exit status: 0 without faults, 1 with faults, 2 if FILE cannot be run.
"""


def main(arguments: list[str] | None = None) -> int:
    """Check each file and print its result."""
    parser = argparse.ArgumentParser(
        "python -m tests.simulator",
        description=__doc__,
        epilog=AFTER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a Python script, or a .metal file")
    parser.add_argument("--quick", action="store_true", help="one order only")
    parser.add_argument("--no-traffic", action="store_true", help="do not print the bytes read and written per buffer")
    given = parser.parse_args(arguments)
    for path in given.files:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    results = [_read(path) if path.suffix == ".metal" else _run(path, given) for path in given.files]
    return max(results)


def _read(path: Path) -> int:
    found = findings(without_prefixes(path.read_text(encoding="utf-8")))
    print(f"{path}: {_verdict(len(found), 'rule')}")
    for finding in found:
        print(f"  {finding}")
    return int(bool(found))


def _run(path: Path, given: argparse.Namespace) -> int:
    kept, sys.argv = sys.argv, [str(path)]
    error, log = None, Log()
    try:
        with simulated(RunOptions() if given.quick else None) as log:
            runpy.run_path(str(path), run_name="__main__")
    except CompileError as refused:
        error = f"a kernel does not compile\n{refused}"
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    finally:
        sys.argv = kept
    for name, result in log.dispatches:
        _tell(name, result, not given.no_traffic)
    if error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1 if error.startswith("a kernel") or log.faults else 2
    if not log.dispatches:
        print(f"{path}: no kernel was dispatched", file=sys.stderr)
        return 2
    print(f"{path}: {_count(len(log.dispatches), 'dispatch')}, {_verdict(len(log.faults), 'fault')}")
    return int(bool(log.faults))


def _tell(name: str, result: Result, with_traffic: bool) -> None:
    print(f"{name}: {_verdict(len(result.faults), 'fault')}")
    for fault in result.faults:
        print(f"  {fault}")
    if not result.traffic:
        return
    print(
        f"  {_count(result.simd_operations, 'simd operation')}, {_count(result.barriers, 'barrier')}, "
        f"{_count(result.threadgroup_bytes, 'byte')} of threadgroup memory"
    )
    if with_traffic:
        print(f"  {'buffer':<16} {'bytes read':>14} {'bytes written':>14} {'lines of 128':>14}")
        for buffer, traffic in result.traffic.items():
            numbers = traffic.read_bytes, traffic.written_bytes, traffic.lines
            print(f"  {buffer:<16} " + " ".join(f"{number:>14,}" for number in numbers))


def _verdict(wrong: int, kind: str) -> str:
    return f"FAILS, {_count(wrong, kind)}" if wrong else "passes"


def _count(count: int, kind: str) -> str:
    return f"{count:,} {kind}{'' if count == 1 else 'es' if kind.endswith('ch') else 's'}"


if __name__ == "__main__":
    sys.exit(main())
