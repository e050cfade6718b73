"""One dispatch of a Metal kernel on the CPU: outputs, faults and memory traffic."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from macllm.ops.metal import KernelCall, options

from . import compile as programs
from . import front
from .text import Buffer, Signature, captured, signature

Order = Literal["forward", "reverse", "random"]
MOST_BUFFERS, MOST_THREADS = 31, 1024
_PARALLEL = 2  # programs that run at a time
LINES = 1 << 16  # a smaller site is a line, not an address
_WIDE: dict[mx.Dtype, np.dtype[Any]] = {mx.bfloat16: np.dtype(np.uint16)}


@dataclass(frozen=True)
class Fault:
    """A fault of a kernel: kind, message, and line of the text."""

    kind: str
    message: str
    line: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" + (f" ({self.line})" if self.line else "")


@dataclass(frozen=True)
class Traffic:
    """Traffic of one buffer: bytes and 128-byte lines that instructions request, and distinct lines."""

    read_bytes: int
    written_bytes: int
    read_lines: int
    written_lines: int
    lines: int


@dataclass(frozen=True)
class Result:
    """The outputs, faults and counts of a dispatch."""

    outputs: list[np.ndarray]
    faults: list[Fault]
    traffic: Mapping[str, Traffic]
    simd_operations: int
    barriers: int
    threadgroup_bytes: int


@dataclass(frozen=True)
class RunOptions:
    """Options of a simulated dispatch."""

    build: programs.Build = "checked"
    order: Order = "forward"
    seed: int = 0
    relaxed: bool = False
    scrambled: bool = False
    flushed: bool = False
    counted: bool = True
    flags: tuple[str, ...] = ()
    constants: tuple[tuple[int, bool | int | float], ...] = ()  # of functions, by number


ONCE = RunOptions(counted=False)
"""For tests with many dispatches of one kernel, whose other orders other tests run."""

_default: ContextVar[RunOptions] = ContextVar("default", default=RunOptions())  # noqa: B039  # frozen


@contextmanager
def default_options(how: RunOptions) -> Iterator[None]:
    """Set the options of dispatches in this block that have none."""
    token = _default.set(how)
    try:
        yield
    finally:
        _default.reset(token)


def run(call: KernelCall, how: RunOptions | None = None) -> Result:
    """A dispatch of one of macllm's kernels. Raises: CompileError."""
    kernel = mx.fast.metal_kernel(**options(call))
    return run_text(captured(kernel, call.arguments), call.arguments, how or _default.get())


@dataclass(frozen=True)
class _Ready:
    """A dispatch ready to run: its program, its outputs, and its job without the options."""

    program: Path
    outputs: list[tuple[tuple[int, ...], np.dtype[Any]]]
    job: tuple[list[str], bytes]


def run_text(text: str, arguments: dict[str, Any], how: RunOptions) -> Result:
    """A dispatch of a kernel from the text that MLX generated, and its arguments. Raises: CompileError."""
    if faults := limits(signature(text), arguments):
        return Result([], faults, {}, 0, 0, 0)
    return _run(_ready(text, arguments, how), how)


def _ready(text: str, arguments: dict[str, Any], how: RunOptions) -> _Ready:
    program = programs.program(text, how.build, how.flags, dict(how.constants))
    shapes, dtypes = arguments["output_shapes"], map(numpy_type, arguments["output_dtypes"])
    return _Ready(program, list(zip(shapes, dtypes, strict=True)), _job(signature(text), arguments))


def _run(ready: _Ready, how: RunOptions) -> Result:
    lines, body = ready.job
    with tempfile.TemporaryDirectory() as folder:
        job, results = Path(folder) / "job", Path(folder) / "results"
        job.write_bytes("\n".join([*_option_lines(how), *lines, "end", ""]).encode() + body)
        done = subprocess.run([str(ready.program), str(job), str(results)], capture_output=True, text=True)
        report = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {}
        if "buffers" not in report:  # the program did not finish
            return Result([], _faults(ready.program, report) or [_crash(done)], {}, 0, 0, 0)
        content = results.read_bytes()
    arrays, at = [], 0
    for shape, kind in ready.outputs:
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(content, kind, count, at).reshape(shape))
        at += count * kind.itemsize
    traffic = {b.pop("name"): Traffic(**b) for b in report["buffers"]}
    counts = report["simd_operations"], report["barriers"], report["threadgroup_bytes"]
    return Result(arrays, _faults(ready.program, report), traffic, *counts)


def check(call: KernelCall) -> Result:
    """A dispatch of one of macllm's kernels as `run_orders` does it. Raises: CompileError."""
    kernel = mx.fast.metal_kernel(**options(call))
    return run_orders(captured(kernel, call.arguments), call.arguments)


def run_orders(text: str, arguments: dict[str, Any], how: RunOptions | None = None) -> Result:
    """A dispatch in every order, once with its matrices' lanes permuted; all must agree bit for bit."""
    how = how or _default.get()
    if faults := limits(signature(text), arguments):
        return Result([], faults, {}, 0, 0, 0)
    ready = _ready(text, arguments, how)
    others = [replace(how, order="reverse", counted=False)]
    others += [replace(how, order="random", seed=1, scrambled=True, counted=False)]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        complaints = pool.submit(_complaints, text)
        first, *again = pool.map(partial(_run, ready), [how, *others])
    if any(_differs(first, result) for result in again):  # find out which of the changes it is
        others = [others[0], *(replace(others[1], **one) for one in ({"scrambled": False}, {"order": how.order}))]
        again = [again[0], *(_run(ready, other) for other in others[1:])]
    first = replace(first, faults=[*(Fault("front", line) for line in complaints.result()), *first.faults])
    for other, result in zip(others, again, strict=True):
        kind, where = ("schedule-dependent", f"{other.order} order")
        if other.scrambled:
            kind, where = ("lane-map", "other lanes")
        new = [Fault(kind, f"the outputs differ in {where}")] if _differs(first, result) else []
        first = replace(first, faults=[*first.faults, *(f for f in [*result.faults, *new] if f not in first.faults)])
    return first


def _differs(first: Result, result: Result) -> bool:
    """True if two runs have other outputs."""
    return [out.tobytes() for out in first.outputs] != [out.tobytes() for out in result.outputs]


@cache
def _complaints(text: str) -> list[str]:
    return front.complaints(text) if front.there() else []


def limits(known: Signature, arguments: dict[str, Any]) -> list[Fault]:
    """Violations of Metal's limits on buffers and threads."""
    faults = []
    if len(known.buffers) > MOST_BUFFERS:
        faults.append(Fault("limit", f"{len(known.buffers)} buffers, of {MOST_BUFFERS}"))
    threads = int(np.prod(arguments["threadgroup"]))
    if threads > MOST_THREADS:
        faults.append(Fault("limit", f"{threads} threads in a group, of {MOST_THREADS}"))
    return faults


def numpy_type(dtype: mx.Dtype) -> np.dtype[Any]:
    """The numpy dtype of an MLX array's memory; bfloat16 is uint16."""
    return _WIDE.get(dtype) or np.dtype(str(dtype).removeprefix("mlx.core.").replace("bool", "bool_"))


def _option_lines(how: RunOptions) -> list[str]:
    return [
        f"order {how.order} {how.seed}",
        f"relaxed {int(how.relaxed)}",
        f"scrambled {int(how.scrambled)}",
        f"flushed {int(how.flushed)}",
        f"counted {int(how.counted)}",
    ]


def _job(known: Signature, arguments: dict[str, Any]) -> tuple[list[str], bytes]:
    """Lines that describe a dispatch and its buffers, and the contents of inputs."""
    head = [
        "grid " + " ".join(map(str, arguments["grid"])),
        "threadgroup " + " ".join(map(str, arguments["threadgroup"])),
    ]
    body = []
    named = dict(zip(_input_names(known, arguments), arguments["inputs"], strict=True))
    outputs = iter(zip(arguments["output_shapes"], arguments["output_dtypes"], strict=True))
    begins_with = arguments.get("init_value")
    for buffer in known.buffers:
        memory = _given(buffer, named)
        is_input, begun = memory is not None, False
        if memory is None:
            shape, dtype = next(outputs)
            if begins_with is not None:
                memory, begun = Memory.of(view(mx.full(shape, begins_with, dtype))), True
        size = memory.size if memory else int(np.prod(shape, dtype=np.int64)) * numpy_type(dtype).itemsize
        segments = memory.segments if memory else np.empty((0, 2), np.uint64)
        head.append(f"buffer {buffer.name} {size} {int(is_input)} {len(segments)} {int(begun)}")
        body += [segments.tobytes(), memory.content if memory else b""]
    return head, b"".join(body)


def _input_names(known: Signature, arguments: dict[str, Any]) -> list[str]:
    """Names of the inputs: the constant buffers except shapes, strides and numbers of axes."""
    extra = ("_shape", "_strides", "_ndim")
    names = [b.name for b in known.buffers if b.is_const]
    kept = [n for n in names if not any(n.endswith(e) and n.removesuffix(e) in names for e in extra)]
    return kept[: len(arguments["inputs"])]


def _given(buffer: Buffer, named: Mapping[str, Any]) -> Memory | None:
    """Memory of an input, or of its shape arguments; None for an output."""
    if buffer.name in named:
        return Memory.of(view(named[buffer.name]))
    owner, _, part = buffer.name.rpartition("_")
    if owner not in named or part not in ("shape", "strides", "ndim"):
        return None
    seen = view(named[owner])
    steps = [s // seen.itemsize for s in seen.strides]
    facts = {
        "shape": np.array(seen.shape, np.int32),
        "strides": np.array(steps, np.int64),
        "ndim": np.array(seen.ndim, np.int32),
    }
    return Memory.of(facts[part])


@dataclass(frozen=True)
class Memory:
    """Memory of a view: bytes from first to last element, the segments shown, and their content."""

    size: int
    segments: np.ndarray  # (n, 2) uint64: from, to before
    content: bytes

    @classmethod
    def of(cls, seen: np.ndarray) -> Memory:
        """The memory of an array with nonnegative strides."""
        inner, run = seen.ndim, seen.itemsize
        while inner and (seen.shape[inner - 1] == 1 or seen.strides[inner - 1] == run):
            run *= seen.shape[inner - 1]
            inner -= 1
        begins = np.zeros(1, np.uint64)
        for count, step in zip(seen.shape[:inner], seen.strides[:inner], strict=True):
            begins = (begins[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(step)).reshape(-1)
        runs = np.ascontiguousarray(seen).view(np.uint8).reshape(len(begins), run)
        begins, first = np.unique(begins, return_index=True)  # a stride of 0 shows the same memory again
        size = int(begins[-1]) + run if len(begins) else 0
        return cls(size, np.stack([begins, begins + np.uint64(run)], 1), runs[first].tobytes())


def view(value: mx.array | np.ndarray | float) -> np.ndarray:
    """A numpy view of an input's memory, with its strides; Python numbers get MLX's types."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, mx.array):
        return np.array(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value, copy=False)
    return np.array(value, np.bool_ if isinstance(value, bool) else np.int32 if isinstance(value, int) else np.float32)


def _faults(program: Path, report: dict[str, Any]) -> list[Fault]:
    return [Fault(f["kind"], f["message"], _line(program, f["site"])) for f in report.get("faults", [])]


def _crash(done: subprocess.CompletedProcess[str]) -> Fault:
    """The fault of a program that crashed: a sanitizer's message and line, else the exit code."""
    for kind, mark in (("undefined", "runtime error: "), ("address", "AddressSanitizer: ")):
        for line in done.stderr.splitlines():
            if mark in line:
                before, _, message = line.partition(mark)
                where = re.search(r"kernel\.metal:\d+", before if kind == "undefined" else done.stderr)
                return Fault(kind, message, where[0] if where else "")
    return Fault("crash", f"exit {done.returncode}")


def _line(program: Path, site: int) -> str:
    if not site:
        return ""
    if site < LINES:
        return f"kernel.metal:{site}"
    done = subprocess.run(["addr2line", "-e", str(program), hex(site - 1)], capture_output=True, text=True)
    return done.stdout.strip().rsplit("/", 1)[-1]
