"""What the REST API answers, beside the store's own records."""

from __future__ import annotations

from pydantic import Field

from learner.records import (
    AnswerSource,
    FinishReason,
    GroupState,
    Module,
    Prompt,
    Record,
    SamplingParameters,
    ScorerIdentity,
    Stage,
)
from services.access.records import AuditEntry
from services.jobs.records import JobEvent, JobSummary, MetricPoint, VersionRecord

LAST_NUMBER = (1 << 31) - 1
"""The highest number that an event or a version can have in every database."""


class JobPage(Record):
    """Jobs, newest first. ``next`` is the cursor of the following page, where there is one."""

    jobs: tuple[JobSummary, ...]
    next: str | None


class EventPage(Record):
    """Events, oldest first. ``next`` is the number to ask after for what follows."""

    events: tuple[JobEvent, ...]
    next: int


class MetricSeries(Record):
    """Metrics over time, by name."""

    series: dict[str, tuple[MetricPoint, ...]]


class VersionList(Record):
    """A job's versions, oldest first."""

    versions: tuple[VersionRecord, ...]


class SampledAnswer(Record):
    """An answer with its provenance (rule 1), without its tokens."""

    text: str
    tokens: int
    logprob: float | None = Field(description="the sampler's, of the whole answer, in nats")
    finish_reason: FinishReason
    source: AnswerSource
    module: Module | None
    version: int | None
    adapter_digest: str | None
    sampling: SamplingParameters | None
    seed: int | None
    sampler: str | None
    win_probability: float | None


class Sample(Record):
    """A prompt, its answers, and how they compare.

    ``win_matrix[i][j]`` is the probability that answer i beats answer j. Before scoring there are no answers yet.
    """

    group_id: str
    source: AnswerSource
    round: int
    index: int
    state: GroupState
    version: int = Field(description="the newest version that wrote answers")
    produced_version: int | None = Field(description="the version that learned from them")
    stage: Stage | None
    reason: str | None
    prompt: Prompt | None
    answers: tuple[SampledAnswer, ...] = ()
    scorer: ScorerIdentity | None = None
    ordered_logits: tuple[tuple[float, ...], ...] = ()
    win_matrix: tuple[tuple[float, ...], ...] = ()


class SamplePage(Record):
    """Samples in order of round and index. ``next`` is the cursor of the following page, where there is one."""

    samples: tuple[Sample, ...]
    next: str | None


class DomainVersions(Record):
    """The versions of one domain: learned from ``start`` on up to ``learned``, and ended by ``end``.

    ``end`` is one more than ``learned`` where a combination follows.
    """

    name: str
    start: int
    learned: int
    end: int


class Transfer(Record):
    """How learning domain after domain went, by one judge's win rates on held-out prompts; null where not measured yet.

    ``win_rates[t][d]`` is the win rate on domain d, counted from 0, after t domains: row 0 is version 0's. The averages are over the
    domains learned so far.
    """

    win_rates: tuple[tuple[float | None, ...], ...]
    learned: int = Field(description="how many domains have been learned and evaluated")
    average_win_rate: float | None
    forgetting: float | None
    backward_transfer: float | None
    forward_transfer: float | None


class DomainList(Record):
    """A job's domains in the order of learning; none where it mixes all prompts. ``gold`` is null without a gold judge's win rates."""

    domains: tuple[DomainVersions, ...] = ()
    scorer: Transfer | None = None
    gold: Transfer | None = None


class AuditPage(Record):
    """Entries of the audit, newest first. ``next`` is the cursor of the following page, where there is one."""

    entries: tuple[AuditEntry, ...]
    next: int | None
