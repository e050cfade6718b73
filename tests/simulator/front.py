"""Checks of a kernel by clang's OpenCL front end, which has address spaces as Metal has."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .brackets import without_comments
from .spelling import with_any_constants, with_parts
from .text import INSTANCE, Attribute, head, signature

COMMAND = (
    "clang++",
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-cl-single-precision-constant",
    "-fsyntax-only",
)
# Threadgroup memory that another lane sets looks uninitialised to clang.
WARNINGS = ("-Wall", "-Wno-sometimes-uninitialized", "-Wno-unused", "-Wno-undefined-inline", "-Wno-undefined-internal")
MOST = 8
HERE = Path(__file__).parent / "clcpp"

_TEMPLATE = re.compile(r"template <([^<>]*)>\s*(?=\[\[kernel\]\])")


def there() -> bool:
    """True if clang is installed."""
    return shutil.which(COMMAND[0]) is not None


def complaints(text: str) -> list[str]:
    """Diagnostics of a captured kernel; [] if it is valid. Raises: FileNotFoundError without clang."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.metal"
        path.write_text(opencl(text))
        command = [*COMMAND, *WARNINGS, f"-I{HERE}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in done.stderr.splitlines() if re.search(r"(?:error|warning): ", line)]
    return [line.removeprefix(folder).lstrip("/") for line in found][:MOST]


def opencl(text: str) -> str:
    """A captured kernel in C++ for OpenCL: no templates, references or attributes on the kernel."""
    known = signature(text)
    values = re.search(r"<(.*)>$", known.instance)
    template = _TEMPLATE.search(without_comments(text, strings=True))
    constants = []
    if template and values:
        for one, value in zip(template[1].split(","), values[1].split(","), strict=True):
            kind, name = one.split()
            constants.append(
                f"typedef {value} {name};" if kind == "typename" else f"constant constexpr {kind} {name} ={value};"
            )
    parameters, locals_ = [], []
    for one in known.parameters:
        if isinstance(one, Attribute):
            call = "any_position()" if one.type == "uint3" else f"{one.type}(any_index())"
            locals_.append(f"const {one.type} {one.name} = {call};")
        else:
            kind = f"{'const ' if one.is_const else ''}{one.space} {one.type}"
            parameters.append(f"{kind}* {one.name}{'_' if one.is_reference else ''}")
            if one.is_reference:
                locals_.append(f"{kind}& {one.name} = *{one.name}_;")
    begins = f"__kernel void simulated({', '.join(parameters)}) {{ {' '.join(locals_)}"
    body = _TEMPLATE.sub("", INSTANCE.sub("", without_comments(text, strings=True)))
    body = with_parts(with_any_constants(body))
    begin = head(body)
    assert begin is not None
    return "\n".join(
        ['#include "front.h"', '#line 1 "kernel.metal"', body[: begin.start()], *constants, begins, body[begin.end() :]]
    )
