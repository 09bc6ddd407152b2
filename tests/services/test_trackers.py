"""Trackers: what is forwarded, that a broken or slow one costs no job, and that an absent package is told at validation."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from job_world import SPEC, running_job

from learner.errors import InputError
from services.jobs import journal as journals
from services.jobs import trackers
from services.jobs.journal import Journal
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.jobs.trackers import BEAT_SECONDS, PACKAGES, Forwarder, Tracker
from services.jobs.validate import validate_job


class Notebook:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int, float]] = []
        self.kept: list[Path] = []
        self.closed = False

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        self.logged.append((dict(values), step, seconds))

    def keep(self, file: Path) -> None:
        self.kept.append(file)

    def close(self) -> None:
        self.closed = True


def forwarder(build: Callable[[], Tracker], clock: Callable[[], float] = time.time) -> tuple[Forwarder, list[str]]:
    warned: list[str] = []
    return Forwarder("notebook", build, warned.append, clock), warned


def test_steps_are_forwarded_and_heartbeats_thinned_at_the_newest_step() -> None:
    now, notebook = [1000.0], Notebook()
    forward, warned = forwarder(lambda: notebook, lambda: now[0])
    forward.metrics({"loss": 0.5}, version=0, learner_step=1)
    for _ in range(int(2 * BEAT_SECONDS)):
        forward.metrics(
            {"queue_ready_groups": 3.0, "worker_restarts_total{worker=s}": 1.0}, version=0, learner_step=None
        )
        now[0] += 1
    forward.metrics({"loss": 0.4}, version=0, learner_step=2)
    forward.metrics({"win_rate": 0.7, "win_rate/late fees: [eu]": 0.6}, version=1, learner_step=None)
    forward.close()
    assert [(values, step) for values, step, _ in notebook.logged] == [
        ({"loss": 0.5, "version": 0.0}, 1),
        ({"queue_ready_groups": 3.0, "version": 0.0}, 1),
        ({"queue_ready_groups": 3.0, "version": 0.0}, 1),
        ({"loss": 0.4, "version": 0.0}, 2),
        ({"win_rate": 0.7, "win_rate/late fees_ _eu_": 0.6, "version": 1.0}, 2),
    ]
    assert notebook.closed and not warned


def broken() -> Tracker:
    raise ConnectionError("no such server")


def test_a_tracker_that_fails_costs_one_warning_and_no_wait() -> None:
    forward, warned = forwarder(broken)
    for step in range(50):
        forward.metrics({"loss": 1.0}, version=0, learner_step=step)
    began = time.monotonic()
    forward.close()
    assert time.monotonic() - began < 5
    assert warned == ["notebook gets no more of this job: ConnectionError: no such server"]


def test_a_slow_tracker_holds_nobody_up_and_what_it_missed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "WAITING", 3)
    release, notebook = threading.Event(), Notebook()
    begun = threading.Event()

    def slow() -> Tracker:
        begun.set()
        assert release.wait(30)
        return notebook

    forward, warned = forwarder(slow)
    assert begun.wait(10)
    began = time.monotonic()
    for step in range(10):
        forward.metrics({"loss": 1.0}, version=0, learner_step=step)
    assert time.monotonic() - began < 5
    release.set()
    forward.close()
    assert [step for _, step, _ in notebook.logged] == [0, 1, 2]
    assert warned == ["notebook was too slow: 7 calls were dropped; the job's own metrics have them"]


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_tracker_without_its_package_is_refused_with_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *more: None if module == name else find(module, *more)
    )
    with pytest.raises(InputError, match=rf"output.trackers: {name} needs a package .* `pip install {name}`"):
        validate_job(parse_job(SPEC | {"output": {"trackers": [name]}}), tmp_path)


def test_a_tracker_is_named_once_and_an_unknown_one_never() -> None:
    assert any("named 2 times" in each for each in trackers.problems(("mlflow", "mlflow")))
    with pytest.raises(InputError, match=r"output.trackers"):
        parse_job(SPEC | {"output": {"trackers": ["notebook"]}})


def test_the_journal_forwards_metrics_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook, opened = Notebook(), list[Any]()
    monkeypatch.setattr(journals, "open_tracker", lambda *arguments: opened.append(arguments) or notebook)
    store = JobStore(f"sqlite:///{tmp_path}/sparring.sqlite")
    job_id = running_job(store, tmp_path)
    paths, spec = JobPaths(tmp_path, job_id), JobSpec.model_validate(SPEC | {"output": {"trackers": ["wandb"]}})
    journal = Journal(store, job_id, logging.getLogger("test"))
    journal.metrics({"early": 1.0}, learner_step=0)
    journal.track(spec, paths)
    journal.metrics({"loss": 0.5}, version=0, learner_step=1)
    paths.root.mkdir(parents=True)
    paths.report.write_text("<p>curves</p>")
    journal.end_tracking(paths.report)
    assert opened == [("wandb", job_id, spec, paths)]
    assert [values for values, _, _ in notebook.logged] == [{"loss": 0.5, "version": 0.0}]
    assert notebook.kept == [paths.report] and notebook.closed
    assert set(store.newest_metrics(job_id)) == {"early", "loss"}
    store.close()
