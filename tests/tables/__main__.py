"""Tables of how training is proven: `python -m tests.tables [NAME ...] [--quick]`.

NAMES are of `TABLES`; all without any. Prints a table in Markdown for each, progress on stderr, and a last line of
JSON. The exit code is 1 if a limit is missed. Needs the extras `test` and `parity`; `--quick` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from tests.tables import benches, commands, gradients, guide, kills, objectives, scaling, trajectories
from tests.tables.table import machine

TABLES = {
    "gradients": gradients.table,
    "objectives": objectives.table,
    "commands": commands.table,
    "trajectories": trajectories.table,
    "kills": kills.table,
    "memory": benches.memory,
    "speed": benches.speed,
    "guide": guide.table,
    "scaling": scaling.table,
}


def main(arguments: list[str]) -> int:
    """Print the tables; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.tables", description="Tables of how training is proven.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(TABLES)} or all (the default)")
    parser.add_argument("--quick", action="store_true", help="little of each table")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {*TABLES, "all"}:
        parser.error(f"no table is named {', '.join(sorted(unknown))}: {', '.join(TABLES)} or all")
    names = list(TABLES) if not options.names or "all" in options.names else list(dict.fromkeys(options.names))
    found: dict[str, Any] = {}
    for name in names:
        began = time.perf_counter()
        try:
            made = TABLES[name](options.quick, lambda text: print(text, file=sys.stderr, flush=True))
        except Exception as error:  # the other tables are still worth printing
            found[name] = {"held": False, "error": f"{type(error).__name__}: {error}"}
            print(f"## {name}\n\nNot measured: {found[name]['error']}\n", flush=True)
            continue
        found[name] = made.as_dict()
        print(made.markdown(time.perf_counter() - began), end="\n\n", flush=True)
    print(json.dumps({**machine(), "quick": options.quick, "tables": found}))
    return int(any(table["held"] is False for table in found.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
