"""``rabbitflow completion``: what a shell needs to complete our commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "rabbitflow"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options.

    \b
    bash  rabbitflow completion bash > ~/.local/share/bash-completion/completions/rabbitflow
    zsh   rabbitflow completion zsh > ~/.zfunc/_rabbitflow     (a directory of your $fpath)
    fish  rabbitflow completion fish > ~/.config/fish/completions/rabbitflow.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    variable = f"_{PROGRAM.upper()}_COMPLETE"
    click.echo(found(ctx.find_root().command, {}, PROGRAM, variable).source())
