"""`macllm completion`: completion of commands, flags and names in the shell."""

from __future__ import annotations

import click

from .names import COMPLETE

SHELLS = {
    "bash": "source <(macllm completion bash), in ~/.bashrc (bash 4.4 or newer)",
    "zsh": "source <(macllm completion zsh), in ~/.zshrc after compinit",
    "fish": "macllm completion fish > ~/.config/fish/completions/macllm.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(f"{shell}: {how}" for shell, how in SHELLS.items()))
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script for SHELL that completes commands, flags and names.

    Names are those of models, presets, settings and conversations on this machine.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "macllm", COMPLETE).source()
    # click's script for fish ends names and descriptions at their first comma
    click.echo(script.replace('string split ","', 'string split --max 1 ","') if shell == "fish" else script)
