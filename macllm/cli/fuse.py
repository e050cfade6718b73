"""`macllm fuse`: a model and its adapter become one checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from macllm.errors import UsageError
from macllm.hub.files import is_stray

from .fetch import fetch
from .output import say, working


@click.command("fuse")
@click.option("-m", "--model", metavar="NAME", help="The model; without it, the one that the adapter was trained on.")
@click.option("--adapter", metavar="FOLDER", default="adapters", show_default=True, help="The adapter to merge.")
@click.option("-o", "--output", metavar="FOLDER", default="fused", show_default=True, help="Where the checkpoint goes.")
@click.option("--dequantize", is_flag=True, help="Write a quantized model's weights unquantized.")
def command(model: str | None, adapter: str, output: str, dequantize: bool) -> None:
    """Merge an adapter into its model; what is written opens in macllm, mlx-lm and transformers.

    The checkpoint's folder goes to stdout.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(not is_stray(Path(path.name)) for path in folder.iterdir())):
        raise UsageError(f"{folder} is there already", remedy=f"macllm fuse --output {folder}-2")
    from macllm.adapter import read_config

    told = read_config(Path(adapter)).get("model")
    base = model or (told if isinstance(told, str) else None)
    source = fetch(base)
    from macllm.checkpoint import load, save
    from macllm.nn.lora import fuse

    with working("merging"):
        merged, tokenizer = load(source, adapter=adapter)
        fuse(merged, dequantize=dequantize)
        save(merged, tokenizer, folder)
    say(f"try it: macllm chat --model {folder}")
    click.echo(folder)
