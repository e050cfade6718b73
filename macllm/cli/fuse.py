"""`macllm fuse`: merge an adapter into a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from macllm.errors import UsageError
from macllm.hub.files import is_stray

from .fetch import fetch
from .output import say, working


@click.command("fuse")
@click.option("-m", "--model", metavar="NAME", help="The model. [default: the one the adapter was trained on]")
@click.option("--adapter", metavar="FOLDER", default="adapters", show_default=True, help="The adapter to merge.")
@click.option(
    "-o", "--output", metavar="FOLDER", default="fused", show_default=True, help="Folder of the new checkpoint."
)
@click.option("--dequantize", is_flag=True, help="Store the weights of a quantized model unquantized.")
def command(model: str | None, adapter: str, output: str, dequantize: bool) -> None:
    """Merge a LoRA adapter into its model and save a checkpoint.

    The checkpoint opens in macllm, mlx-lm and transformers. Prints its folder.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(not is_stray(Path(path.name)) for path in folder.iterdir())):
        raise UsageError(f"{folder} already exists", remedy=f"macllm fuse --output {folder}-2")
    from macllm.adapter import read_config

    recorded = read_config(Path(adapter)).get("model")
    base = model or (recorded if isinstance(recorded, str) else None)
    source = fetch(base)
    from macllm.checkpoint import load, save
    from macllm.nn.lora import fuse

    with working("merging"):
        merged, tokenizer = load(source, adapter=adapter)
        fuse(merged, dequantize=dequantize)
        save(merged, tokenizer, folder)
    say(f"try it: macllm chat --model {folder}")
    click.echo(folder)
