"""A kernel's text as MLX hands it to Metal's compiler, and as C++ that the simulator can compile."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .lint import without_comments

ATTRIBUTES = {
    "thread_position_in_grid": "uint3(p.in_grid[0], p.in_grid[1], p.in_grid[2])",
    "thread_position_in_threadgroup": "uint3(p.in_group[0], p.in_group[1], p.in_group[2])",
    "threadgroup_position_in_grid": "uint3(p.group[0], p.group[1], p.group[2])",
    "threads_per_threadgroup": "uint3(p.group_size[0], p.group_size[1], p.group_size[2])",
    "dispatch_threads_per_threadgroup": "uint3(p.group_size[0], p.group_size[1], p.group_size[2])",
    "threadgroups_per_grid": "uint3(p.groups[0], p.groups[1], p.groups[2])",
    "threads_per_grid": "uint3(p.grid[0], p.grid[1], p.grid[2])",
    "thread_index_in_simdgroup": "p.lane",
    "thread_index_in_threadgroup": "p.index",
    "simdgroup_index_in_threadgroup": "p.simdgroup",
    "simdgroups_per_threadgroup": "p.simdgroups",
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
}
"""What Metal tells a thread about itself, in C++."""

INCLUDED = ("metal_stdlib", "mlx_text.h")
"""What a kernel's C++ begins with."""

SIGNATURE = re.compile(r"\[\[kernel\]\] void (\w+)\((.*?)\)\s*\{", re.DOTALL)
_BUFFER = re.compile(r"(const )?(device|constant) (.+?)([*&]) (\w+) \[\[buffer\((\d+)\)\]\]")
_ATTRIBUTE = re.compile(r"\w+ (\w+) \[\[\w+\]\]")
INSTANCE = re.compile(r"^template \[\[host_name.*?decltype\((.*)\) \1;$", re.MULTILINE | re.DOTALL)
_SHARED = re.compile(r"\bthreadgroup\s+([\w:<>, ]+?)\s+(\w+\s*(?:\[[^;]*?\])?(?:\s*,\s*\w+\s*(?:\[[^;]*?\])?)*)\s*;")
_SPACES = re.compile(r"\b(?:device|constant|threadgroup|thread)\b")


@dataclass(frozen=True)
class Buffer:
    """A parameter of a kernel that is memory."""

    name: str
    space: str
    type: str
    is_reference: bool
    is_const: bool
    number: int


@dataclass(frozen=True)
class Signature:
    """What MLX has made of a kernel: its name, with template arguments, and its parameters."""

    instance: str
    parameters: tuple[Buffer | str, ...]  # a string is an attribute

    @property
    def buffers(self) -> list[Buffer]:
        """Those that are memory, in order."""
        return [one for one in self.parameters if isinstance(one, Buffer)]


def captured(kernel: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """The text that MLX would compile for a call, which it tells while an export is traced."""
    inputs = arguments["inputs"]
    arrays = [one for one in inputs if isinstance(one, mx.array)]

    def traced(*given: mx.array) -> list[mx.array]:
        left = iter(given)
        return kernel(
            **{**arguments, "inputs": [next(left) if isinstance(i, mx.array) else i for i in inputs]}, verbose=True
        )

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(said.fileno(), 1)
        try:
            mx.export_function(f"{folder}/kernel.mlxfn", traced, *arrays)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        said.seek(0)
        return said.read().decode("ascii").partition("```\n")[2].rpartition("```")[0]


def signature(text: str) -> Signature:
    """How a captured kernel is called. Raises ValueError where that is not seen."""
    text = without_comments(text, strings=True)
    found = SIGNATURE.search(text)
    if found is None:
        raise ValueError("there is no kernel in this text")
    name, listed = found.groups()
    parameters: list[Buffer | str] = []
    for one in re.split(r",\s*(?![^<]*>)", listed.strip()):
        if buffer := _BUFFER.fullmatch(one.strip()):
            const, space, kind, mark, called, number = buffer.groups()
            parameters.append(Buffer(called, space, kind, mark == "&", const is not None, int(number)))
        elif attribute := _ATTRIBUTE.fullmatch(one.strip()):
            parameters.append(attribute[1])
        else:
            raise ValueError(f"{name} takes what nobody knows: {one}")
    instance = INSTANCE.search(text)
    return Signature(instance[1] if instance else name, tuple(parameters))


def cpp(text: str) -> str:
    """C++ with a function `simulator_kernel` that is one thread of a captured kernel."""
    known = signature(text)
    sites = iter(range(10**6))

    def shared(found: re.Match[str]) -> str:
        kind, names = found.groups()
        return " ".join(_shared(kind, name.strip(), next(sites)) for name in re.split(r",(?![^\[]*\])", names))

    body = _SPACES.sub(
        "", re.sub(r"\[\[.*?\]\]", "", _SHARED.sub(shared, INSTANCE.sub("", without_comments(text, strings=True))))
    )
    return "\n".join(
        [
            *(f'#include "{name}"' for name in INCLUDED),
            '#line 1 "kernel.metal"',
            body,
            '#line 1 "entry"',
            'extern "C" __attribute__((no_sanitize("thread"))) void simulator_kernel() {',
            "  [[maybe_unused]] const auto& p = *simulator::own_place;",
            f"  {known.instance}({', '.join(map(_argument, known.parameters))});",
            "}",
            "",
        ]
    )


def _shared(kind: str, name: str, site: int) -> str:
    bare, _, size = name.partition("[")
    whole = kind + (f"[{size}" if size else "")
    return f"using shared_{site} = {whole}; auto& {bare.strip()} = simulator::shared<shared_{site}>({site});"


def _argument(parameter: Buffer | str) -> str:
    if isinstance(parameter, str):
        return ATTRIBUTES[parameter]
    const = "const " if parameter.is_const else ""
    pointer = f"({const}{parameter.type}*)simulator::buffers[{parameter.number}]"
    return f"*{pointer}" if parameter.is_reference else pointer
