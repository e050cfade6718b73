"""`python -m macllm` is `macllm`."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line; an interrupt is quiet even while it is still being imported."""
    try:
        from macllm.cli import INTERRUPTED, main
    except KeyboardInterrupt:
        return 130
    try:
        return main()
    except KeyboardInterrupt:  # between the last line of a run and its end
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
