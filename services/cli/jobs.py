"""Commands about jobs: submit, list, show, watch, pause, resume, cancel, delete, logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner.errors import InputError
from services.cli.source import LocalJobs, RemoteJobs, ServiceUrlOption, UrlOption, open_jobs, open_service
from services.jobs.logfiles import Level, LogRecord
from services.jobs.records import JobRecord, JobSummary, MetricPoint, VersionRecord
from services.jobs.state import JobState
from services.settings import Settings, is_loopback
from workers.series import Series

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

WATCH_SECONDS = 0.5

_COLOURS = {
    JobState.QUEUED: "yellow",
    JobState.VALIDATING: "cyan",
    JobState.RUNNING: "cyan",
    JobState.PAUSED: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "magenta",
}


def submit(
    file: Annotated[Path, typer.Argument(help="The job, as YAML or JSON.", show_default=False)],
    url: ServiceUrlOption = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: the same key again makes no second job.")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then show how it goes.")] = False,
) -> None:
    """Hand a job to the service and print its id."""
    settings = Settings.load()
    service = open_service(url, settings)
    job = service.client.submit(_readable(file, service.client.url), idempotency_key=key)
    typer.echo(job.id)
    if follow:
        _watch(service, job.id)


def list_(
    url: UrlOption = None,
    state: Annotated[list[JobState] | None, typer.Option("--state", help="Only these states.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="Only jobs with this label; repeat it for more."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest.")] = 20,
    json_: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    labels = dict(_label(text) for text in label or ())
    jobs = open_jobs(url, Settings.load()).list(states=state or (), labels=labels, limit=limit)
    if json_:
        import json

        typer.echo(json.dumps([job.model_dump(mode="json", exclude={"spec"}) for job in jobs], indent=2))
    elif not jobs:
        typer.echo("No such jobs." if state or labels else "No jobs yet.")
    else:
        Console().print(_jobs_table(jobs))


def show(job_id: JobArgument, url: UrlOption = None, json_: JsonOption = False) -> None:
    """Show one job: where it stands, its newest numbers and its versions."""
    jobs = open_jobs(url, Settings.load())
    job = jobs.get(job_id)
    if json_:
        typer.echo(job.model_dump_json(indent=2))
        return
    from services.cli.tables import show_domains, show_transfer

    console = Console()
    newest = jobs.newest_metrics(job_id)
    by_domain = {name: newest.pop(name).value for name in list(newest) if "win_rate" in name and "/" in name}
    console.print(_facts(job, newest))
    versions = jobs.versions(job_id)
    if versions:
        console.print(_versions_table(versions))
    show_domains(by_domain, console)
    show_transfer(job, versions, console)


def watch(job_id: JobArgument, url: UrlOption = None) -> None:
    """Follow a job until it ends. Ctrl-C leaves it running."""
    _watch(open_jobs(url, Settings.load()), job_id)


def cancel(job_id: JobArgument, url: UrlOption = None) -> None:
    """Ask a job to stop. Its versions are kept; `sparring resume` goes on from the newest."""
    job = open_jobs(url, Settings.load()).cancel(job_id)
    typer.echo(f"{job_id} is cancelled." if job.state is JobState.CANCELLED else f"{job_id} is asked to stop.")


def pause(job_id: JobArgument, url: UrlOption = None) -> None:
    """Ask a job to hold where it is, its workers waiting; `sparring resume` lets it go on."""
    open_jobs(url, Settings.load()).pause(job_id)
    typer.echo(f"{job_id} is asked to pause.")


def delete(
    job_id: JobArgument,
    url: UrlOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a job that has ended, with its versions, samples, history and logs."""
    jobs = open_jobs(url, Settings.load())
    job = jobs.get(job_id)
    if not yes:
        typer.confirm(f"Delete {job_id} ({job.state}) and everything in {job.home}/jobs/{job_id}?", abort=True)
    jobs.delete(job_id)
    typer.echo(f"{job_id} is deleted.")


def resume(job_id: JobArgument, url: UrlOption = None) -> None:
    """Let a paused job go on, or a failed or cancelled one from its newest version: in the service, or here when there is none."""
    settings = Settings.load()
    jobs = open_jobs(url, settings)
    if isinstance(jobs, RemoteJobs):
        job = jobs.client.resume(job_id)
        queued = job.state is JobState.QUEUED
        typer.echo(f"{job_id} is queued again (attempt {job.attempt})." if queued else f"{job_id} goes on.")
        return
    if jobs.get(job_id).state is JobState.PAUSED:
        jobs.go_on(job_id)
        typer.echo(f"{job_id} goes on.")
        return
    from services.cli.local import exit_code, resume_here, tell_end

    console = Console()
    ended = resume_here(job_id, settings, console)
    tell_end(ended, settings, console)
    raise typer.Exit(exit_code(ended))


def logs(
    job_id: JobArgument,
    url: UrlOption = None,
    file: Annotated[str | None, typer.Option("--file", help="Only this log file.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="Last lines of each file.")] = 40,
    events: Annotated[bool, typer.Option("--events", help="The job's event log instead of the workers' logs.")] = False,
    level: Annotated[
        Level | None,
        typer.Option(
            "--level", help="Records of all workers by time instead, of this level and above.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Records, and go on until the job ends.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Records, as JSON lines.")] = False,
) -> None:
    """Print the ends of the workers' logs, their records in the order of time, or the job's events."""
    jobs = open_jobs(url, Settings.load())
    if not events and (level is not None or follow or json_):
        _print_records(jobs, job_id, level or "debug", lines, follow=follow, as_json=json_)
        return
    if not events:
        text = jobs.logs(job_id, lines, file)
        typer.echo(text if text else f"{job_id} has no logs yet; --events shows its events.", nl=not text)
        return
    seq = 0
    while page := jobs.events_after(job_id, seq):
        for event in page:
            typer.echo(f"{event.time.astimezone():%Y-%m-%d %H:%M:%S}  {event.kind:<18} {event.message}")
        seq = page[-1].seq


def _print_records(
    jobs: LocalJobs | RemoteJobs, job_id: str, level: Level, count: int, *, follow: bool, as_json: bool
) -> None:
    """The last ``count`` records, and those that follow."""
    after: str | None = None
    last: deque[LogRecord] | None = deque(maxlen=count)  # None: they are printed as they come
    while True:
        ended = jobs.get(job_id).state.terminal  # first: what is logged before its end is then never missed
        page = jobs.log_records(job_id, after, level)
        after = page.next
        if last is not None:
            last.extend(page.records)
        if last is None or not page.more:
            for record in page.records if last is None else last:
                typer.echo(record.model_dump_json(exclude_none=True) if as_json else _line(record))
            last = None
        if not page.more:
            if ended or not follow:
                return
            time.sleep(WATCH_SECONDS)


def _line(record: LogRecord) -> str:
    request = f" [{record.request_id}]" if record.request_id else ""
    trace = f"\n{record.exception}" if record.exception else ""
    return f"{record.time.astimezone():%Y-%m-%d %H:%M:%S} {record.level.upper():<8} {record.worker}{request}: {record.message}{trace}"


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--label: {text!r} is not a name and a value; write --label team=search")
    return name, value


def _readable(file: Path, url: str) -> dict[str, Any]:
    """The job in a file, for a service: one on this machine gets absolute paths, whatever folder it runs in."""
    from urllib.parse import urlsplit

    from services.jobs.load import load_job
    from services.jobs.paths import resolve_paths

    spec = load_job(file)
    if is_loopback(urlsplit(url).hostname or ""):
        spec = resolve_paths(spec, file.resolve().parent)
    return spec.model_dump(mode="json")


def _watch(jobs: LocalJobs | RemoteJobs, job_id: str) -> None:
    from rich.live import Live

    from services.cli.progress import JobView
    from services.jobs.store import JobStore

    console = Console()
    view = JobView(cast(JobStore, jobs), job_id)  # it reads what both sources offer
    try:
        with Live(view, console=console, refresh_per_second=1 / WATCH_SECONDS):
            while True:
                job = jobs.get(job_id)
                for event in view.new_events():
                    console.print(f"[dim]{event.time.astimezone():%H:%M:%S}[/] {escape(event.message)}", soft_wrap=True)
                if job.state.terminal:
                    break
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        console.print(
            f"{job_id} goes on. `sparring watch {job_id}` shows it again, `sparring cancel {job_id}` ends it."
        )
        raise typer.Exit(130) from None
    if job.error is not None:
        console.print(f"[bold red]{job_id} failed[/] ({job.error.code}): {escape(job.error.message)}", soft_wrap=True)
    raise typer.Exit({JobState.SUCCEEDED: 0, JobState.CANCELLED: 130}.get(job.state, 1))


def _jobs_table(jobs: Sequence[JobSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("job", "state", "done", "version", "best", "stage", "made"):
        table.add_column(heading, justify="right" if heading in ("done", "version", "best") else "left", no_wrap=True)
    for job in jobs:
        table.add_row(
            job.id,
            f"[{_COLOURS[job.state]}]{job.state}[/]",
            f"{job.progress:.0%}",
            _version(job.current_version),
            _version(job.best_version),
            escape(job.stage or ""),
            _ago(job.created_at),
        )
    return table


def _facts(job: JobRecord, metrics: Mapping[str, MetricPoint]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    stage = f", {job.stage}" if job.stage and not job.state.terminal else ""
    rows = [
        ("job", job.id),
        ("state", f"[{_COLOURS[job.state]}]{job.state}[/]{escape(stage)}"),
        ("asked for", str(job.requested) if job.requested else ""),
        ("done", f"{job.progress:.0%}"),
        ("ends about", f"{job.estimated_finish_at.astimezone():%Y-%m-%d %H:%M}" if job.estimated_finish_at else ""),
        ("priority", str(job.priority) if job.priority else ""),
        ("attempt", str(job.attempt)),
        ("made", f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("started", f"{job.started_at.astimezone():%Y-%m-%d %H:%M:%S}" if job.started_at else ""),
        ("ended", f"{job.finished_at.astimezone():%Y-%m-%d %H:%M:%S}" if job.finished_at else ""),
        ("error", escape(f"{job.error.code}: {job.error.message}") if job.error else ""),
        ("labels", escape(", ".join(f"{name}={value}" for name, value in job.metadata.items()))),
        ("files", escape(f"{job.home}/jobs/{job.id}")),
    ]
    for name, point in sorted(metrics.items()):
        if point.value is not None and not Series.read(name).labels:  # each worker's own are for Prometheus
            rows.append((name, f"{point.value:.6g}"))
    for name, text in rows:
        if text:
            table.add_row(name, text)
    return table


def _versions_table(versions: Sequence[VersionRecord]) -> Table:
    names = ("win_rate", "length_controlled_win_rate", "gold_win_rate", "kl_nats")
    shown = [name for name in names if any(name in each.metrics for each in versions)]
    table = Table(box=None, pad_edge=False, header_style="bold", title="Versions", title_justify="left")
    for heading in ("version", "step", *shown, "digest", ""):
        table.add_column(heading, justify="left" if heading in ("digest", "") else "right", no_wrap=True)
    for each in versions:
        values = [each.metrics.get(name) for name in shown]
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        best = "[green]best[/]" if each.best else ""
        table.add_row(_version(each.version), str(each.learner_step), *numbers, each.digest[:12], best)
    return table


def _version(version: int | None) -> str:
    return "-" if version is None else f"v{version}"


def _ago(moment: datetime) -> str:
    seconds = int((datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{max(seconds, 0)} s ago"
