"""Arrays with unusual strides, each a view of a larger buffer."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Layout(NamedTuple):
    """Spare elements after each axis, and the axes' order in memory, the outermost first."""

    room: tuple[int, ...]
    order: tuple[int, ...]


PLAIN = Layout((0, 0, 0, 0), (0, 1, 2, 3))
CACHED = Layout((0, 0, 7, 0), (0, 1, 2, 3))
TURNED = Layout((0, 0, 0, 0), (0, 2, 1, 3))
PROJECTED = Layout((0, 3, 0, 0), (0, 2, 1, 3))
WIDENED = Layout((0, 1, 2, 8), (0, 1, 2, 3))
LAYOUTS = {
    "as the shape says": PLAIN,
    "with room for more": CACHED,
    "heads after positions": TURNED,
    "a part of a projection": PROJECTED,
    "a part of each row": WIDENED,
}


def laid(x: mx.array, layout: Layout) -> mx.array:
    """The same numbers as a view of a larger array, which is NaN outside of the view."""
    numbers = np.array(x)
    filler = np.nan if numbers.dtype.kind == "f" else np.iinfo(numbers.dtype).max
    whole = np.full([n + more for n, more in zip(numbers.shape, layout.room, strict=True)], filler, numbers.dtype)
    whole[tuple(slice(n) for n in numbers.shape)] = numbers
    memory = mx.array(np.ascontiguousarray(whole.transpose(layout.order)))
    shown = memory.transpose(tuple(int(i) for i in np.argsort(layout.order)))[tuple(slice(n) for n in numbers.shape)]
    mx.eval(shown)
    return shown


def strides(x: mx.array) -> tuple[int, ...]:
    """Strides in elements."""
    seen = np.array(x, copy=False)
    return tuple(step // seen.itemsize for step in seen.strides)


def apart(*arrays: mx.array) -> bool:
    """True if no two arrays have a stride in common, except that of the last axis."""
    together = zip(*(strides(x)[:-1] for x in arrays), strict=True)
    return all(len(set(steps)) == len(arrays) for steps in together)
