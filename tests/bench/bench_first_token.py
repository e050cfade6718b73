"""Seconds to the first token on a fresh machine: an empty home, no kernels compiled, no network.

Every run is a new process with the bundled model and warm file caches. Bound by imports and one pass of MLX's
operations over the prompt; compilers run beside it at the lowest priority. The limit is 3 s on two idle cores. The load
of the machine is reported: where others compute too, the processor seconds are what counts.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from timing import cpu_seconds_of, print_json, print_table, seconds_to_text, take_turns

ROUNDS = 5
PROMPT = "What is grouped-query attention?"
LIMIT_SECONDS = 3.0


def fresh(command: list[str], *variables: str) -> list[str]:
    """The command with a new, empty home."""
    home = tempfile.mkdtemp(dir=os.environ["BENCH_HOMES"])
    unset = [flag for name in ("MACLLM_NATIVE_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME") for flag in ("-u", name)]
    return ["env", *unset, f"HOME={home}", f"MACLLM_HOME={home}/macllm", "HF_HUB_OFFLINE=1", *variables, *command]


def main() -> None:
    """Measure, print two tables and a line of JSON."""
    from macllm.ops import cpu
    from macllm.ops.cpu.build import cache_folder

    cpu.prepare(lambda done, total: None)
    python = sys.executable
    generate = [python, "-m", "macllm", "generate", "--temperature", "0", "-n", "8", PROMPT]
    chat = [python, "-m", "macllm", "chat", "--plain", "--temperature", "0", "--max-tokens", "8", PROMPT]
    contestants = {
        "generate": partial(fresh, generate),
        "chat": partial(fresh, chat),
        "generate, no compiler": partial(fresh, generate, "PATH=/nowhere", "CXX="),
        "generate, kernels there": partial(fresh, generate, f"MACLLM_NATIVE_CACHE={cache_folder()}"),
    }
    with tempfile.TemporaryDirectory() as homes:
        os.environ["BENCH_HOMES"] = homes
        load = os.getloadavg()[0]
        tokens = take_turns(
            {name: lambda make=make: seconds_to_text(make()) for name, make in contestants.items()}, ROUNDS
        )
        work = take_turns(
            {name: lambda make=make: cpu_seconds_of(make()) for name, make in contestants.items()}, ROUNDS
        )
    print_table(tokens, "s to the first token")
    print()
    print_table(work, "s of CPU to the end")
    print_json(
        Path(__file__).stem,
        {"first_token_seconds": tokens, "cpu_seconds": work},
        {
            "limit_over_first_token": LIMIT_SECONDS / max(series.median for series in tokens.values()),
            "load_at_the_beginning": load,
        },
    )


if __name__ == "__main__":
    main()
