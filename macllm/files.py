"""Files: the three descriptors that every process is expected to have."""

from __future__ import annotations

import os


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
