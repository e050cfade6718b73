"""`macllm bench`: speed and memory of a model, relative to the machine's limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from macllm.units import bytes_text, duration_text, speed_text

from . import names
from .fetch import fetch
from .native import compile_kernels
from .output import Progress, say, working
from .sampling import MODEL_HELP, adapter_option

if TYPE_CHECKING:
    from macllm.evaluate.speed import Figure, Speed


@click.command("bench")
@click.option("-m", "--model", metavar="NAME", shell_complete=names.models, help=MODEL_HELP)
@adapter_option()
@click.option(
    "-p", "--prompt", "prompt_tokens", type=click.IntRange(min=1), help="Prompt length in tokens. [default: 512]"
)
@click.option(
    "-n", "--new", "new_tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Tokens to generate."
)
@click.option(
    "-r",
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Repetitions; the median is reported.",
)
@click.option("--kv-bits", type=click.Choice(["4", "8"]), help="Quantize the KV cache to 4 or 8 bits.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    model: str | None,
    adapter: str | None,
    prompt_tokens: int | None,
    new_tokens: int,
    repeats: int,
    kv_bits: str | None,
    as_json: bool,
) -> int:
    """Measure a model on this machine: loading, time to first token, prompt and decoding speed, memory.

    The prompt is random and decoding greedy. Percentages are fractions of the machine's limits, which are measured
    too: memory bandwidth for decoding, floating-point throughput for prompts. `macllm models ls` shows the speed
    later, and estimates that of other models from the bandwidth.
    """
    folder = fetch(model)
    compile_kernels()
    from macllm.checkpoint import load
    from macllm.evaluate.speed import Workload, measure
    from macllm.hub import speeds
    from macllm.hub.names import BUNDLED

    workload = Workload(prompt_tokens, new_tokens, repeats, int(kv_bits) if kv_bits else None)

    def open_model() -> object:
        with working("loading the model"):
            opened_model, _ = load(folder, adapter=adapter)
        return opened_model

    with Progress("bench", unit="rounds") as progress:
        speed = measure(open_model, workload, progress.update)
    speeds.record(model or BUNDLED, speed.decode.median, new_tokens)
    speeds.record_machine(bandwidth=speed.read_bytes_per_second)
    if as_json:
        click.echo(json.dumps(asdict(speed)))
    else:
        _print(speed)
    return 0


def _print(speed: Speed) -> None:
    rows = [
        ("load", duration_text(speed.load_seconds, fine=True), f"{bytes_text(speed.weights_bytes)} of weights"),
        ("first token", f"{speed.first_token.median:.3f} s", _spread(speed.first_token)),
        ("prompt", speed_text(speed.prefill.median), f"{_spread(speed.prefill)}, {_share(speed.prefill_share)}"),
        ("decode", speed_text(speed.decode.median), f"{_spread(speed.decode)}, {_share(speed.decode_share)}"),
        ("memory", bytes_text(speed.peak_bytes), f"peak; {bytes_text(speed.cache_bytes)} of it KV cache"),
        ("bandwidth", f"{bytes_text(speed.read_bytes_per_second)}/s", "measured limit of the machine, for decoding"),
        (
            "arithmetic",
            f"{speed.operations_per_second / 1e9:.0f} GFLOP/s",
            "measured limit of the machine, for prompts",
        ),
    ]
    for name, value, note in rows:
        click.echo(f"{name:<12}{value:>14}  {note}")
    for note in speed.notes:
        say(note)


def _spread(figure: Figure) -> str:
    return f"±{figure.spread / figure.median:.0%}"


def _share(share: float) -> str:
    return f"{share:.0%} of the machine's limit"
