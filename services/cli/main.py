"""The command line's entry point. Light by design: ``sparring --help`` imports no torch, ray, vllm or transformers.

A command's module keeps its heavy imports inside its functions. Whatever is wrong with a person's input arrives here as an
`InputError` and leaves as its sentence on stderr and exit code 2.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from learner.errors import InputError

EXIT_BAD_INPUT = 2

app = typer.Typer(
    name="sparring",
    help="Align a language model by letting it play against itself.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

COMMANDS: dict[str, tuple[str, ...]] = {
    "demo": ("demo",),
    "run": ("run",),
    "validate": ("validate",),
    "schema": ("schema",),
    "serve": ("serve",),
    "jobs": ("submit", "list", "show", "watch", "cancel", "resume", "logs"),
    "export": ("export",),
}
"""Module of this package to the commands that it offers; a function is named as its command (``list`` as ``list_``)."""


def _register() -> None:
    for module_name, commands in COMMANDS.items():
        if importlib.util.find_spec(f"services.cli.{module_name}") is None:
            continue
        module = importlib.import_module(f"services.cli.{module_name}")
        for command in commands:
            function = getattr(module, command, None) or getattr(module, f"{command}_")
            app.command(command)(function)
    if importlib.util.find_spec("services.cli.scorer") is not None:
        app.add_typer(importlib.import_module("services.cli.scorer").app, name="scorer")


def installed_version() -> str:
    """Sparring's version, as installed."""
    try:
        return version("sparring")
    except PackageNotFoundError:
        return "0+source"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparring {installed_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Align a language model by letting it play against itself."""


_register()


def main() -> None:
    """Run the command line; the console script ``sparring`` calls this."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]Error:[/] {escape(str(error))}")
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
