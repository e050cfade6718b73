"""`python -m macllm` is `macllm`."""

from __future__ import annotations

import sys

from macllm.cli import main

if __name__ == "__main__":
    sys.exit(main())
