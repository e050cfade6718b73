"""Translation of a kernel's Metal source, as MLX generates it, to C++ for the simulator."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .brackets import parted, without_comments
from .memories import Shared, declarations, refused
from .spelling import Constants, unclear, with_constants, with_literals, with_parts, without_spaces

_POSITIONS = {
    "thread_position_in_grid": "in_grid",
    "thread_position_in_threadgroup": "in_group",
    "threadgroup_position_in_grid": "group",
    "threads_per_threadgroup": "group_size",
    "dispatch_threads_per_threadgroup": "whole_size",
    "threadgroups_per_grid": "groups",
    "threads_per_grid": "grid",
    "grid_size": "grid",
    "grid_origin": "origin",
}
_INDICES = {
    "thread_index_in_simdgroup": "p.lane",
    "thread_index_in_quadgroup": "p.lane % 4",
    "thread_index_in_threadgroup": "p.index",
    "simdgroup_index_in_threadgroup": "p.simdgroup",
    "quadgroup_index_in_threadgroup": "p.index / 4",
    "simdgroups_per_threadgroup": "p.simdgroups",
    "quadgroups_per_threadgroup": "(p.group_size[0] * p.group_size[1] * p.group_size[2] + 3) / 4",
    "dispatch_simdgroups_per_threadgroup": "(p.whole_size[0] * p.whole_size[1] * p.whole_size[2] + 31) / 32",
    "dispatch_quadgroups_per_threadgroup": "(p.whole_size[0] * p.whole_size[1] * p.whole_size[2] + 3) / 4",
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
}
"""Thread attributes of Metal, in C++."""

INCLUDED = ("metal_stdlib", "mlx_text.h")
"""The first lines of a kernel's C++."""

KERNEL = r"(?:\[\[\s*kernel\b(?:[^\[\]]|\([^()]*\))*\]\]|\bkernel)\s+void\s+"
"""The text before a kernel's name."""
INSTANCE = re.compile(r"^template \[\[host_name.*?decltype\((.*)\) \1;$", re.MULTILINE | re.DOTALL)
_BUFFER = re.compile(r"([^*&]+)([*&])\s*(\w+)\s*(?:\[\[\s*buffer\(\d+\)[^\]]*\]\])?", re.DOTALL)
_ATTRIBUTE = re.compile(r"(?:const\s+)?(\w+)\s+(\w+)\s*\[\[\s*(\w+)\s*\]\]")


class CompileError(Exception):
    """A kernel that does not compile; the message has the compiler's errors."""


@dataclass(frozen=True)
class Buffer:
    """A buffer parameter of a kernel."""

    name: str
    space: str
    type: str
    is_reference: bool
    is_const: bool


@dataclass(frozen=True)
class Attribute:
    """A parameter of a kernel with an attribute of the thread, such as its position."""

    name: str
    type: str
    attribute: str

    @property
    def value(self) -> str:
        """The value in C++, from a lane's place `p`. Raises: CompileError."""
        if self.attribute in _INDICES:
            return f"{self.type}({_INDICES[self.attribute]})"
        if self.attribute not in _POSITIONS:
            raise CompileError(f"the attribute [[{self.attribute}]] is not supported")
        count = int(self.type[-1]) if self.type[-1] in "23" else 1
        return f"{self.type}({', '.join(f'p.{_POSITIONS[self.attribute]}[{i}]' for i in range(count))})"


@dataclass(frozen=True)
class Signature:
    """A kernel's signature as MLX generated it: name with template arguments, and parameters."""

    instance: str
    parameters: tuple[Buffer | Attribute, ...]

    @property
    def buffers(self) -> list[Buffer]:
        """The buffer parameters, in order."""
        return [one for one in self.parameters if isinstance(one, Buffer)]


def captured(kernel: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """The source that MLX would compile for a call, which it prints while it traces an export."""
    inputs = arguments["inputs"]
    arrays = [one for one in inputs if isinstance(one, mx.array)]

    def traced(*given: mx.array) -> list[mx.array]:
        left = iter(given)
        return kernel(
            **{**arguments, "inputs": [next(left) if isinstance(i, mx.array) else i for i in inputs]}, verbose=True
        )

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(output.fileno(), 1)
        try:
            mx.export_function(f"{folder}/kernel.mlxfn", traced, *arrays)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        output.seek(0)
        return output.read().decode("utf-8", errors="replace").partition("```\n")[2].rpartition("```")[0]


def head(text: str) -> re.Match[str] | None:
    """Offsets of a captured kernel's name, parameters and opening brace, in a text without comments."""
    instance = INSTANCE.search(text)
    name = re.escape(instance[1].partition("<")[0]) if instance else r"\w+"
    return re.search(rf"{KERNEL}({name})\s*\((.*?)\)\s*\{{", text, re.DOTALL)


def signature(text: str) -> Signature:
    """The call signature of a captured kernel. Raises: CompileError."""
    text = without_comments(text, strings=True)
    found = head(text)
    if found is None:
        raise CompileError("there is no kernel in this text")
    name, listed = found.groups()
    parameters: list[Buffer | Attribute] = []
    for one in parted(listed.strip()):
        if buffer := _BUFFER.fullmatch(one.strip()):
            parameters.append(_buffer(*buffer.groups()))
        elif attribute := _ATTRIBUTE.fullmatch(one.strip()):
            kind, called, named = attribute.groups()
            parameters.append(Attribute(called, kind, named))
        else:
            raise CompileError(f"{name} has a parameter that is not supported: {' '.join(one.split())}")
    instance = INSTANCE.search(text)
    return Signature(instance[1] if instance else name, tuple(parameters))


def _buffer(declared: str, mark: str, name: str) -> Buffer:
    words = declared.split()
    space = "constant" if "constant" in words else "device"
    kind = " ".join(word for word in words if word not in ("const", "device", "constant", "volatile"))
    return Buffer(name, space, kind, mark == "&", space == "constant" or "const" in words)


def cpp(text: str, constants: Constants | None = None) -> str:
    """C++ whose `simulator_kernel` runs one thread of a captured kernel. Raises: CompileError."""
    known = signature(text)
    bare = translated(INSTANCE.sub(_blanks, without_comments(text, strings=True)), constants)
    return "\n".join(
        [
            *(f'#include "{name}"' for name in INCLUDED),
            '#line 1 "kernel.metal"',
            bare,
            '#line 1 "entry"',
            'extern "C" __attribute__((no_sanitize("thread"))) void simulator_kernel() {',
            "  [[maybe_unused]] const auto& p = *simulator::own_place;",
            f"  {known.instance}({_arguments(known)});",
            "}",
            "",
        ]
    )


def translated(bare: str, constants: Constants | None = None) -> str:
    """Functions of a text without comments in C++, line by line. Raises: CompileError."""
    doubles = [f"there is no double: {line.strip()}" for line in bare.splitlines() if re.search(r"\bdouble\b", line)]
    if wrong := [*map(str, refused(bare)), *unclear(bare), *doubles]:
        raise CompileError("\n".join(wrong))
    shared = [one for one in declarations(bare) if isinstance(one, Shared)]
    sites = sum(len(one.names) for one in shared)
    for one in reversed(shared):
        sites -= len(one.names)
        lines = "\n" * bare.count("\n", one.begin, one.end)
        bare = bare[: one.begin] + _made(one, sites) + lines + bare[one.end :]
    bare = re.sub(r"\[\[.*?\]\]", _blanks, with_constants(bare, constants or {}), flags=re.DOTALL)
    return without_spaces(with_parts(with_literals(bare)))


def _blanks(found: re.Match[str]) -> str:
    return re.sub(r"[^\n\\]", " ", found[0])  # keep newlines and the backslashes of macros


def _made(shared: Shared, site: int) -> str:
    made = []
    for i, (name, size) in enumerate(shared.names, site):
        alignment = f", {shared.alignment}" if shared.alignment else ""
        made.append(
            f"using shared_{i} = {shared.type}{size}; auto& {name} = simulator::shared<shared_{i}>({i}{alignment});"
        )
    return " ".join(made)


def _arguments(known: Signature) -> str:
    values, number = [], 0
    for parameter in known.parameters:
        if isinstance(parameter, Attribute):
            values.append(parameter.value)
            continue
        values.append(f"simulator::{'Whole' if parameter.is_reference else 'First'}{{simulator::buffers[{number}]}}")
        number += 1
    return ", ".join(values)
