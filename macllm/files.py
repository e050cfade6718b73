"""Files: the three descriptors that every process is expected to have, and what lies in place of a wanted file."""

from __future__ import annotations

import os
from pathlib import Path

# First bytes -> what such a file is, and what to do about it.
_STAND_INS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself", "git lfs pull, in its folder"),
    (b"<!doctype html", "a web page, not the file itself", "download it again: the address led to a page"),
    (b"<html", "a web page, not the file itself", "download it again: the address led to a page"),
    (b"gguf", "a GGUF file under another name", "take the checkpoint in safetensors form"),
    (b"pk\x03\x04", "a zip archive, as PyTorch's pickled weights are", "take the checkpoint in safetensors form"),
)


def stand_in(path: Path) -> tuple[str, str] | None:
    """A cause and a remedy for a file that is something known and unwanted by its first bytes, or None."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return None
    return next((("it is " + what, remedy) for magic, what, remedy in _STAND_INS if start.startswith(magic)), None)


def occupy_standard_descriptors() -> tuple[int, ...]:
    """Open those of descriptors 0, 1 and 2 that are closed, and return them.

    Reading from 0 gives nothing, writing to 1 fails as it did, writing to 2 goes nowhere. Left closed, the next file
    gets the number: MLX takes a file that got 0 for one that it could not open, and whatever is printed goes into a
    file that got 1 or 2.
    """
    closed: list[int] = []
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest that is free is this one
            closed.append(descriptor)
    return tuple(closed)
