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
    from services.jobs.paths import resolve_paths
    from services.jobs.validate import validate_job
    from services.settings import Settings

    settings = Settings.load()
    spec = resolve_paths(load_job(file), file.resolve().parent)
    validate_job(spec, Path("/"))
    console = Console()
    job = run_here(spec, settings, console)
    tell_end(job, settings, console)
    raise typer.Exit(exit_code(job))
