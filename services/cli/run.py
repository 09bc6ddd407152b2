"""`sparring run`: one job in this terminal, on a Ray cluster that is there or that is brought up for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    file: Annotated[Path, typer.Argument(help="The job, as YAML or JSON.", show_default=False)],
) -> None:
    """Run a job and show how it goes. Ctrl-C ends it cleanly and keeps its newest version; `sparring resume` goes on from there."""
    from rich.console import Console

    from services.cli.local import exit_code, run_here, tell_end
    from services.jobs.load import load_job
    from services.jobs.machine import Machine
    from services.jobs.validate import validate_job
    from services.settings import Settings

    settings = Settings.load()
    machine = Machine.here() if settings.ray_address is None else None
    checked = validate_job(load_job(file), file.resolve().parent, machine=machine)
    console = Console()
    job = run_here(checked.spec, settings, console)
    tell_end(job, settings, console)
    raise typer.Exit(exit_code(job))
