"""`sparring demo`: build a small world, and watch a small policy get better by playing against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    seed: Annotated[
        int, typer.Option(help="Every draw of the world and of the job derives from it.", min=0, max=(1 << 31) - 1)
    ] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds of self-play; 4 in the demo's own job.", min=1)] = None,
    job_file: Annotated[
        Path | None,
        typer.Option(
            "--job",
            metavar="FILE",
            help="Run this job instead of the demo's own, with the world's policy, scorer and prompts in place of the file's.",
        ),
    ] = None,
    shuffle: Annotated[
        bool,
        typer.Option(
            "--shuffle", help="Control experiment: shuffle the preferences. The win rate must stay at one half."
        ),
    ] = False,
    print_job: Annotated[
        bool,
        typer.Option("--print-job", help="Build the world and print the job as JSON, for a service to run."),
    ] = False,
) -> None:
    """Build the demo world on first use, run a self-play job on it, and show what came of it."""
    import os
    import time

    # before torch is imported: OpenMP threads that spin while they wait make a busy machine many times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from services.cli.local import exit_code, run_here, tell_end
    from services.cli.tables import show_examples, show_versions
    from services.demo.job import demo_spec, on_demo_world
    from services.demo.world import ensure_world
    from services.doctor.facts import installed_packages
    from services.doctor.software import accelerator
    from services.jobs.load import load_job
    from services.jobs.machine import Machine
    from services.jobs.state import JobState
    from services.jobs.store import JobStore
    from services.jobs.validate import validate_job
    from services.settings import Settings

    settings = Settings.load()
    console = Console(stderr=print_job)
    given = None if job_file is None else load_job(job_file)
    began = time.monotonic()
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )
    with bars:
        tasks: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        settings.make_home()
        world = ensure_world(settings.home, seed, tell)
    built = time.monotonic() - began
    console.print(
        f"World: {world.root} ({built:.0f} s). PairRM's held-out accuracy: {world.pairrm_accuracy:.1%}", soft_wrap=True
    )
    spec = demo_spec(world, seed=seed, rounds=rounds or 4, name="demo", gpu=accelerator(installed_packages()) == "gpu")
    if given is not None:
        spec = validate_job(on_demo_world(given, world, rounds), Path.cwd(), machine=Machine.here()).spec
    if shuffle:
        spec = spec.model_copy(update={"scorer": spec.scorer.model_copy(update={"shuffle": True})})
    if print_job:
        typer.echo(spec.model_dump_json(indent=2))
        return
    job = run_here(spec, settings, console)
    store = JobStore(settings.store_url)
    if job.state is JobState.SUCCEEDED:
        show_versions(store, job.id, console)
        show_examples(store, job.id, console)
    console.print(f"Time: {built:.0f} s for the world, {time.monotonic() - began - built:.0f} s for the job.")
    tell_end(job, settings, console)
    raise typer.Exit(exit_code(job))
