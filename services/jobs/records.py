"""What the job store hands out: plain, immutable records, the same that the REST API writes as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue, WithJsonSchema

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
    restarts: int = Field(
        default=0,
        ge=0,
        description="automatic restarts since a person last started or resumed it, or since its newest version",
    )
    error: JobError | None = None
    requested: RequestedAction | None = None
    progress: float = Field(default=0.0, ge=0, le=1, description="share of the job that is done")
    stage: str | None = None
    estimated_finish_at: datetime | None = Field(
        default=None, description="when it ends at its mean speed since it began to run; null while that is unknown"
    )
    priority: int = Field(default=0, description="of queued jobs the highest starts first, then the oldest")
    current_version: int | None = None
    best_version: int | None = None


class JobRecord(JobSummary):
    """One job as the store knows it."""

    spec: dict[str, JsonValue]

    def summary(self) -> JobSummary:
        """The same without the specification, for lists."""
        return JobSummary.model_validate(self.model_dump(exclude={"spec"}))


class Preference(Record):
    """What a person preferred, of two answers to a prompt."""

    prompt: Annotated[
        JsonValue,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}),
    ] = Field(description="Text, or a list of chat messages with `role` and `content` whose last one is the user's.")
    chosen: str = Field(min_length=1, description="The better answer.")
    rejected: str = Field(min_length=1, description="The worse answer.")
    id: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Sent again under the same id, it is stored once. Default: a digest of everything else.",
    )
    domain: str | None = Field(default=None, min_length=1, max_length=255, description="What it is about.")
    rater: str | None = Field(default=None, min_length=1, max_length=255, description="Who preferred it.")


class StoredPreference(Record):
    """A preference in the store. ``number`` counts from 1 within the job; ``digest`` is of what it says, its id left out."""

    number: int
    id: str
    digest: str
    preference: Preference


class PreferencesReceipt(Record):
    """What became of preferences that were sent: the ids of all, in order, and how many of them are new."""

    ids: tuple[str, ...]
    stored: int = Field(description="were new, and are on disk now")
    known: int = Field(description="were stored before")


class PreferenceTotals(Record):
    """A job's preferences by what the store knows: waiting for a ticket, taken into the replay queue, or refused."""

    waiting: int = 0
    taken: int = 0
    refused: int = 0


class RefusedPreference(Record):
    """A preference that cannot be learned from, and why."""

    id: str
    reason: str


class FeedbackCounts(Record):
    """Where a job's preferences stand: received = waiting + admitted + consumed + skipped + failed + refused."""

    share: float = Field(description="of a version's groups that may come from preferences; 0: none are taken in")
    received: int
    waiting: int = Field(description="for a version that has room for them")
    admitted: int = Field(description="on their way into a version")
    consumed: int = Field(description="learned from")
    skipped: dict[str, int] = Field(description="by reason")
    failed: dict[str, int] = Field(description="by stage")
    refused: int
    refusals: tuple[RefusedPreference, ...] = Field(description="the newest")


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
    """One value of a metric, or the mean of several that follow each other: of long series, old points are kept merged."""

    value: float | None = Field(description="absent where what was measured is not a finite number")
    version: int | None = None
    learner_step: int | None = Field(default=None, description="of the last point, where several are merged")
    time: datetime = Field(description="of the last point, where several are merged")
    points: int = Field(default=1, ge=1, description="how many points it stands for, all of one version")
    low: float | None = Field(default=None, description="the lowest of them, where they are several")
    high: float | None = Field(default=None, description="the highest of them, where they are several")


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
