"""Start-up seconds: to the help, and to the bundled model's first token.

Bound by imports: bare Python is the floor of the one, `import mlx.nn, tokenizers` that of the other. mlx-lm is run on
the same checkpoint with the same prompt, greedily. Every run is a new process with warm file caches; the kernels that
macllm compiles at first use are compiled already. Takes another model's folder or name as its argument.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from timing import cpu_seconds_of, print_json, print_table, seconds_of, seconds_to_text, take_turns

ROUNDS = 7
PROMPT = "What is grouped-query attention?"


def main() -> None:
    """Measure, print two tables and a line of JSON."""
    from macllm.hub import resolve

    python, folder = sys.executable, str(resolve(*sys.argv[1:]))
    commands = {
        "bare python": [python, "-c", "pass"],
        "macllm --help": [python, "-m", "macllm", "--help"],
        "mlx_lm.generate --help": [python, "-m", "mlx_lm", "generate", "--help"],
    }
    helps = take_turns({name: partial(seconds_of, command) for name, command in commands.items()}, ROUNDS)
    cpu = take_turns({name: partial(cpu_seconds_of, command) for name, command in commands.items()}, ROUNDS)
    ours = [python, "-m", "macllm", "generate", "--model", folder, "--temperature", "0", "--max-tokens", "8", PROMPT]
    theirs = [
        python,
        "-m",
        "mlx_lm",
        "generate",
        "--model",
        folder,
        "--prompt",
        PROMPT,
        "--max-tokens",
        "8",
        "--temp",
        "0",
    ]
    tokens = take_turns(
        {
            "macllm generate": lambda: seconds_to_text(ours),
            # It prints a separator line first.
            "mlx_lm.generate": lambda: seconds_to_text(theirs, b"==========\n"),
        },
        ROUNDS,
    )
    print_table(helps, "s")
    print()
    print_table(cpu, "s of CPU")
    print()
    print_table(tokens, "s")
    over_python = helps["macllm --help"].median - helps["bare python"].median
    print_json(
        Path(__file__).stem,
        {"help_seconds": helps, "help_cpu_seconds": cpu, "first_token_seconds": tokens},
        {
            "help_over_bare_python_seconds": over_python,
            "help_over_bare_python_cpu_seconds": cpu["macllm --help"].median - cpu["bare python"].median,
            "first_token_mlx_lm_over_macllm": tokens["mlx_lm.generate"].median / tokens["macllm generate"].median,
        },
    )


if __name__ == "__main__":
    main()
