"""`python -m macllm` is `macllm`."""

from __future__ import annotations

import sys

from macllm.files import occupy_standard_descriptors


def run() -> int:
    """Run the command line; Ctrl-C prints no traceback, not even during its import."""
    for descriptor in occupy_standard_descriptors():
        name, mode = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[descriptor]
        setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    try:
        from macllm.cli import INTERRUPTED, main
    except KeyboardInterrupt:
        return 130
    try:
        return main()
    except KeyboardInterrupt:  # after main's own handler
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
