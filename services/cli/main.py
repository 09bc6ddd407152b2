"""The command line's entry point. Light by design: ``sparring --help`` imports no torch, ray, vllm or transformers.

A command's module keeps its heavy imports inside its functions. Whatever is wrong with a person's input arrives here as an
`InputError` and leaves as its sentence on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from learner.errors import InputError
from services.cli import (
    audit,
    chat,
    demo,
    doctor,
    evaluate,
    export,
    feedback,
    jobs,
    keys,
    objectives,
    run,
    schema,
    scorer,
    serve,
    trace,
    validate,
)
from workers.errors import CallTimeout, WorkerError

EXIT_BAD_INPUT = 2
EXIT_BROKEN = 1
"""A process of the cluster died or did not answer."""

app = typer.Typer(
    name="sparring",
    help="Align a language model by letting it play against itself.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def installed_version() -> str:
    """Sparring's version, as installed."""
    from importlib.metadata import PackageNotFoundError, version

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


app.command()(demo.demo)
app.command()(run.run)
app.command()(validate.validate)
app.command()(evaluate.evaluate)
app.command()(schema.schema)
app.command()(objectives.objectives)
app.command()(serve.serve)
app.command()(jobs.submit)
app.command("list")(jobs.list_)
app.command()(jobs.show)
app.command()(jobs.watch)
app.command()(jobs.pause)
app.command()(jobs.resume)
app.command()(jobs.cancel)
app.command()(jobs.delete)
app.command()(jobs.logs)
app.command()(trace.trace)
app.command()(chat.chat)
app.command()(chat.compare)
app.command()(feedback.feedback)
app.command()(export.export)
app.command()(doctor.doctor)
app.command()(audit.audit)
app.add_typer(keys.app, name="keys")
app.add_typer(scorer.app, name="scorer")


def main() -> None:
    """Run the command line; the console script ``sparring`` calls this."""
    try:
        app()
    except InputError as error:
        _leave(error, EXIT_BAD_INPUT)
    except (WorkerError, CallTimeout) as error:
        _leave(error, EXIT_BROKEN)


def _leave(error: Exception, code: int) -> NoReturn:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]Error:[/] {escape(str(error))}")
    sys.exit(code)


if __name__ == "__main__":
    main()
