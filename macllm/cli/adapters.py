"""`macllm adapters`: show adapters, and write them in the format of mlx-lm or PEFT."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from macllm.files import json_text
from macllm.units import bytes_text, count_text

from . import names
from .fetch import fetch_base
from .output import working

_FORMS = {"mlx-lm": "mlx", "peft": "peft"}
_FOLDER = click.argument("folder", metavar="FOLDER", shell_complete=names.folders)


@click.group("adapters", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show adapters, and write them in the format of mlx-lm or PEFT."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("show")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(folder: str, as_json: bool) -> None:
    """Print the base, targets, rank and size of the adapter in FOLDER."""
    from macllm.adapter.export import describe

    found = describe(Path(folder).expanduser())
    if as_json:
        click.echo(json_text(asdict(found)))
        return
    form = next(name for name, form in _FORMS.items() if form == found.form)
    click.echo(f"{found.kind} in the format of {form}, of {found.base or 'an unknown base'}")
    click.echo(f"rank {_listed(found.ranks)}, scale {_listed(found.scales)}, dropout {found.dropout:g}")
    for target, count in found.targets.items():
        click.echo(f"{count:>5} x {target}")
    for module, count in found.whole.items():
        click.echo(f"{count:>5} x {module}, stored whole")
    click.echo(f"{count_text(found.parameters)} parameters, {bytes_text(found.size_bytes)}")


@command.command("export")
@_FOLDER
@click.option("--form", type=click.Choice(list(_FORMS)), required=True, help="Format to write.")
@click.option("-o", "--output", metavar="FOLDER", help="Folder to write to. [default: FOLDER-FORM]")
@click.option(
    "-m", "--model", metavar="NAME", shell_complete=names.models,
    help="The base model, whose family names the layers. [default: the one the adapter was trained on]",
)  # fmt: skip
def export(folder: str, form: str, output: str | None, model: str | None) -> None:
    """Write the adapter in FOLDER in the format of mlx-lm or PEFT, and print the new folder."""
    from macllm.adapter import read_config

    path = Path(folder).expanduser()
    source = fetch_base(model, [read_config(path).get("model")])
    into = Path(output).expanduser() if output else path.with_name(f"{path.name}-{form}")
    from macllm.adapter.export import export as write
    from macllm.checkpoint import load_model

    with working("exporting"):
        write(load_model(source), path, into, "peft" if form == "peft" else "mlx")
    click.echo(into)


def _listed(values: list[int] | list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
