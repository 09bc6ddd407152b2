"""Runs one job for a command in the foreground: starts it, shows it live, and ends it cleanly on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from learner.errors import InputError
from services.cli.progress import JobView
from services.cli.tables import show_transfer
from services.jobs.dispatcher import MISSES
from services.jobs.foreground import fail_abandoned, held
from services.jobs.layout import JobPaths
from services.jobs.records import JobRecord
from services.jobs.state import JobState, RequestedAction, StateConflict
from services.jobs.store import JobStore
from services.settings import Settings

if TYPE_CHECKING:
    from services.jobs.launcher import Launcher
    from services.jobs.spec import JobSpec

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0
"""After a cancel, the time that the controller has to end its workers."""


def run_here(spec: JobSpec, settings: Settings, console: Console) -> JobRecord:
    """Make a job, run it to its end, and return it as it ended."""
    store = _store(settings)
    job = store.create(spec, home=settings.home, runner="command")
    with _held(job.id, settings):
        return _follow(job.id, store, settings, console)


def resume_here(job_id: str, settings: Settings, console: Console) -> JobRecord:
    """Go on with a failed or cancelled job from its newest version.

    Raises:
        InputError: there is no such job, or it can not be resumed, or another command runs it.
    """
    store = _store(settings)
    fail_abandoned(store)
    store.get(job_id)
    with _held(job_id, settings):
        store.resume(job_id, runner="command")
        return _follow(job_id, store, settings, console)


def tell_end(job: JobRecord, settings: Settings, console: Console) -> None:
    """Say how a job ended, and where its things are."""
    paths = JobPaths(settings.home, job.id)
    if job.error is not None:
        console.print(f"[bold red]{job.id} failed[/] ({job.error.code}): {escape(job.error.message)}")
        console.print(f"Logs: {paths.logs}", soft_wrap=True)
    else:
        console.print(f"[bold]{job.id}[/] {job.state}.")
    show_transfer(job, _store(settings).versions(job.id), console)
    chosen = job.best_version if job.best_version is not None else job.current_version
    if chosen is not None:
        which = "best" if job.best_version is not None else "newest"
        console.print(f"Adapter ({which} version, v{chosen}): {paths.versions / 'fast' / f'v{chosen}'}", soft_wrap=True)
    if paths.report.exists():
        console.print(f"Report: {paths.report}", soft_wrap=True)
    if job.state in (JobState.FAILED, JobState.CANCELLED) and job.current_version is not None:
        console.print(f"Go on from the newest version: sparring resume {job.id}")


def exit_code(job: JobRecord) -> int:
    """0 for a job that succeeded; 130 for a cancelled one, as for any command ended by Ctrl-C; 1 for a failed one."""
    return {JobState.SUCCEEDED: 0, JobState.CANCELLED: 130}.get(job.state, 1)


def _store(settings: Settings) -> JobStore:
    settings.make_home()
    return JobStore(settings.store_url)


def _held(job_id: str, settings: Settings) -> AbstractContextManager[None]:
    """The job's lock, where it ends with this command. On a cluster its controller lives on, and a lock of before would say that it does not."""
    paths = JobPaths(settings.home, job_id)
    if settings.ray_address is None:
        return held(paths)
    paths.command_lock.unlink(missing_ok=True)
    return nullcontext()


def _follow(job_id: str, store: JobStore, settings: Settings, console: Console) -> JobRecord:
    from services.jobs.launcher import Launcher
    from workers import process_tree

    # whatever ends this process, SIGKILL included, its local cluster ends with it
    if settings.ray_address is None:
        process_tree.guard()
    view = JobView(store, job_id)
    interrupt = _Interrupt(store, job_id)
    with interrupt, Live(view, console=console, refresh_per_second=4, transient=False) as live:
        console.print(f"Job [bold]{job_id}[/]; its files are in {JobPaths(settings.home, job_id).root}", soft_wrap=True)
        launcher = Launcher(settings)
        interrupt.listen()  # Ray puts handlers of its own in place of ours when it starts
        try:
            launcher.start(job_id)
            misses = 0
            while not (job := store.get(job_id)).state.terminal:
                for event in view.new_events():
                    console.print(f"[dim]{event.time:%H:%M:%S}[/] {escape(event.message)}", soft_wrap=True)
                if interrupt.seconds_ago() > GRACE_SECONDS:
                    store.transition(job_id, JobState.CANCELLED, message="its controller did not end in time")
                    continue
                misses = 0 if launcher.alive(job_id) else misses + 1
                if misses == MISSES:
                    misses = 0
                    _revive(job, store, launcher, settings)
                time.sleep(POLL_SECONDS)
            live.update(view, refresh=True)
            launcher.wait_gone(job_id)
        finally:
            launcher.close()
    if not console.is_terminal:
        console.print()  # a file gets the view once, without a line end
    for event in view.new_events():
        console.print(f"[dim]{event.time:%H:%M:%S}[/] {escape(event.message)}", soft_wrap=True)
    return job


def _revive(job: JobRecord, store: JobStore, launcher: Launcher, settings: Settings) -> None:
    """A controller is gone although its job has not ended: start another, which finds the workers again (rule 10)."""
    if store.get(job.id).state.terminal:
        return
    if job.restarts >= settings.max_job_restarts:
        raise InputError(
            f"the controller of {job.id} died {job.restarts + 1} times (SPARRING_MAX_JOB_RESTARTS: "
            f"{settings.max_job_restarts}); see its log"
        )
    if job.state.active:
        store.requeue(job.id, message="the controller died and is started again", restart=True)
    launcher.start(job.id)


class _Interrupt:
    """Ctrl-C and SIGTERM ask for the job's end, once."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self._store, self._job_id = store, job_id
        self._at: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals."""
        for number in self._before:
            signal.signal(number, self._cancel)

    def seconds_ago(self) -> float:
        """Seconds since the first signal; 0 before it."""
        return 0.0 if self._at is None else time.monotonic() - self._at

    def _cancel(self, _signal: int, _frame: FrameType | None) -> None:
        if self._at is None:
            self._at = time.monotonic()
            try:
                self._store.request(self._job_id, RequestedAction.CANCEL)
            except StateConflict:  # it ended by itself in this moment
                return
