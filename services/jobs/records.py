"""What the job store hands out: plain, immutable records, the same that the REST API writes as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from learner.records import Module, Record
from services.jobs.state import JobState, RequestedAction

Runner = Literal["service", "command"]
"""Who runs a job: the service's dispatcher, or a ``sparring run`` in somebody's terminal."""


class JobError(Record):
    """Why a job failed. ``param`` is the path of the specification's field at fault, where there is one."""

    code: str
    message: str
    param: str | None = None


class JobSummary(Record):
    """One job as the store knows it, without its specification."""

    id: str
    name: str
    state: JobState
    metadata: dict[str, str] = Field(default_factory=dict)
    runner: Runner
    home: str = Field(description="Sparring's home on the data node; JobPaths(Path(home), id) finds the job's files")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = Field(ge=1)
    restarts: int = Field(default=0, ge=0, description="automatic restarts since a person last started or resumed it")
    error: JobError | None = None
    requested: RequestedAction | None = None
    progress: float = Field(default=0.0, ge=0, le=1, description="share of the job that is done")
    stage: str | None = None
    current_version: int | None = None
    best_version: int | None = None


class JobRecord(JobSummary):
    """One job as the store knows it."""

    spec: dict[str, JsonValue]

    def summary(self) -> JobSummary:
        """The same without the specification, for lists."""
        return JobSummary.model_validate(self.model_dump(exclude={"spec"}))


class JobEvent(Record):
    """One line of a job's append-only log. ``seq`` counts from 1 within the job, without gaps."""

    job_id: str
    seq: int
    time: datetime
    kind: str
    message: str
    data: dict[str, JsonValue] = Field(default_factory=dict)


class NewEvent(Record):
    """An event that is yet to be written; the store gives it its number and time."""

    kind: str
    message: str
    data: dict[str, JsonValue] = Field(default_factory=dict)


class MetricPoint(Record):
    """One value of a metric. ``value`` is absent where what was measured is not a finite number."""

    value: float | None
    version: int | None = None
    learner_step: int | None = None
    time: datetime


class VersionRecord(Record):
    """A published policy version, with what its evaluation said."""

    job_id: str
    module: Module
    version: int
    digest: str
    learner_step: int
    created_at: datetime
    metrics: dict[str, float | None] = Field(default_factory=dict)
    best: bool = False
