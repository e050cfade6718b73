"""`macllm fuse`: merge an adapter into a checkpoint."""

from __future__ import annotations

import math
import shlex
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macllm.errors import UsageError
from macllm.hub.files import is_stray

from .fetch import fetch_base
from .output import say, working
from .sampling import adapter_option

if TYPE_CHECKING:
    from macllm.adapter.merge import Cost


@click.command("fuse")
@click.option("-m", "--model", metavar="NAME", help="The model. [default: the one the adapter was trained on]")
@adapter_option("The adapter to merge", default=("adapters",), show_default="adapters")
@click.option(
    "-o", "--output", metavar="FOLDER", default="fused", show_default=True, help="Folder of the new checkpoint."
)
@click.option("--dequantize", is_flag=True, help="Store all weights of a quantized model unquantized.")
def command(model: str | None, adapter: str, output: str, dequantize: bool) -> None:
    """Merge a LoRA adapter, or the weighted sum of several, into its model and save a checkpoint.

    The checkpoint opens in macllm, mlx-lm and transformers. Prints its folder. The merged model is compared with the
    adapted one, and layers of a quantized model get more bits where rounding would undo what the adapter learned.
    """
    folder = Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(not is_stray(Path(path.name)) for path in folder.iterdir())):
        raise UsageError(f"{folder} already exists", remedy=_elsewhere(model, adapter, folder))
    from macllm.adapter import read_config
    from macllm.adapter.merge import merge, probes
    from macllm.hub.blend import parse

    source = fetch_base(model, [read_config(Path(each).expanduser()).get("model") for each in parse(adapter)])
    from macllm.checkpoint import check_family, load, save, stored_types

    with working("merging"):
        merged, tokenizer = load(source, adapter=adapter)
        check_family(merged)  # before the work
        cost = merge(merged, probes(merged, tokenizer), dequantize)
        save(merged, tokenizer, folder, stored_types(source))  # weights may be in another type here than in the file
    say(_described(cost))
    if merged.info.labels is None:
        say(f"try it: {shlex.join(['macllm', 'chat', '--model', str(folder)])}")
    click.echo(folder)


def _elsewhere(model: str | None, adapter: str, folder: Path) -> str:
    """The same command with a folder that is free."""
    from macllm.hub.blend import parse

    parts = ["macllm", "fuse", *(("--model", model) if model else ())]
    for name, weight in parse(adapter).items():
        parts += ["--adapter", name if weight == 1 else f"{name}:{weight:g}"]
    free = next(path for number in count(2) if not Path(path := f"{folder}-{number}").exists())
    return shlex.join([*parts, "--output", free])


def _described(cost: Cost) -> str:
    """One line on what merging changed, and on the bits that it took."""
    loss = f"{cost.share:.2g} of its effect" if cost.share < 1e-3 else f"{cost.share:.1%} of its effect"
    if math.isinf(cost.share):
        loss = "more than the adapter's effect"
    if not cost.tokens:
        return f"merged {cost.layers} layers, not quantized; not measured, because the model is not causal"
    text = (
        f"merged {cost.layers} layers: KL {cost.kl:.2g} nats per token from the adapted model, {loss}; "
        f"{cost.changed} of {cost.tokens} greedy tokens changed"
    )
    match cost.precision:
        case "8-bit":
            text += "; these layers are in 8 bits, because fewer would round the adapter away"
        case "unquantized":
            text += "; these layers are not quantized"
        case "stored":
            pass
    return text if cost.within_budget else f"{text}; more than the {cost.budget:.0%} that is allowed"
