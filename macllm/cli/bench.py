"""`macllm bench`: how fast a model is on this machine, and how near to what the machine allows."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from macllm.units import bytes_text, duration_text, speed_text

from .fetch import fetch
from .native import compile_kernels
from .output import Progress, say, working

if TYPE_CHECKING:
    from macllm.evaluate.speed import Figure, Speed


@click.command("bench")
@click.option("-m", "--model", metavar="NAME", help="A folder or org/name; else the bundled model.")
@click.option("--adapter", metavar="FOLDER", help="A LoRA adapter to run the model with.")
@click.option(
    "-p", "--prompt", "prompt_tokens", type=click.IntRange(min=1), help="Tokens of the prompt. [default: 512]"
)
@click.option(
    "-n", "--new", "new_tokens", type=click.IntRange(min=2), default=64, show_default=True, help="New tokens."
)
@click.option(
    "-r",
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Repetitions; the median is reported.",
)
@click.option("--kv-bits", type=click.Choice(["4", "8"]), help="Keep keys and values quantized.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def command(
    model: str | None,
    adapter: str | None,
    prompt_tokens: int | None,
    new_tokens: int,
    repeats: int,
    kv_bits: str | None,
    as_json: bool,
) -> int:
    """Measure a model on this machine: load, first token, prompt, decoding and memory.

    The prompt is random, decoding greedy. Shares are of what the machine can do at most: its memory bandwidth for
    decoding, its floating-point operations for prompts; both are measured too.
    """
    folder = fetch(model)
    compile_kernels()
    from macllm.checkpoint import load
    from macllm.evaluate.speed import Workload, measure

    workload = Workload(prompt_tokens, new_tokens, repeats, int(kv_bits) if kv_bits else None)

    def opened() -> object:
        with working("loading the model"):
            opened_model, _ = load(folder, adapter=adapter)
        return opened_model

    with Progress("bench", unit="rounds") as progress:
        speed = measure(opened, workload, progress.update)
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
        ("memory", bytes_text(speed.peak_bytes), f"at most; {bytes_text(speed.cache_bytes)} of it keys and values"),
        ("bandwidth", f"{bytes_text(speed.read_bytes_per_second)}/s", "the machine's, measured: bounds decoding"),
        ("arithmetic", f"{speed.operations_per_second / 1e9:.0f} GFLOP/s", "the machine's, measured: bounds prompts"),
    ]
    for name, value, note in rows:
        click.echo(f"{name:<12}{value:>14}  {note}")
    for note in speed.notes:
        say(note)


def _spread(figure: Figure) -> str:
    return f"±{figure.spread / figure.median:.0%}"


def _share(share: float) -> str:
    return f"{share:.0%} of the machine's limit"
