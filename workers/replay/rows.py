"""The ledger's tables, and the records in which it answers."""

from __future__ import annotations

import sqlite3
import zlib
from enum import StrEnum

from pydantic import Field

from learner.records import AnswerSource, GroupState, Record, ResponseGroup, ScoredGroup, SkipReason, Stage, Ticket
from workers.series import labelled

SCHEMA_VERSION = 4

READABLE = (3, 4)
"""Formats that can be looked at; one that is written to is brought to the newest first."""

PASSAGES = ("sampled_at", "stored_at", "leased_at")
"""Columns that say when a group passed a stage, in seconds since the epoch; NULL before, and for what was written in format 3."""

UPGRADE = "".join(f"ALTER TABLE groups ADD COLUMN {column} REAL;" for column in PASSAGES)
"""From format 3."""

SCHEMA = """
CREATE TABLE groups (
    id INTEGER PRIMARY KEY,
    group_id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,              -- where its answers come from
    round INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,          -- the ticket's, later the group's own
    policy_version INTEGER,            -- the newest that wrote one of the answers; NULL when all come from outside
    produced_version INTEGER,
    stage TEXT,
    reason TEXT,
    bytes INTEGER NOT NULL DEFAULT 0,
    last_pass INTEGER,                 -- the pass under which the row was last leased
    lease_order INTEGER,               -- place among the leased rows, so that later passes repeat the first one's order
    duplicates INTEGER NOT NULL DEFAULT 0,
    admitted_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    sampled_at REAL,                   -- its answers were complete, by the scorer's clock
    stored_at REAL,                    -- it was scored, and on disk
    leased_at REAL,                    -- the learner got it
    UNIQUE (round, idx)
) STRICT;
CREATE INDEX groups_by_state ON groups (state, round, idx, bytes, policy_version);
CREATE INDEX groups_by_lease ON groups (last_pass, lease_order) WHERE lease_order IS NOT NULL;
CREATE INDEX groups_by_product ON groups (produced_version) WHERE produced_version IS NOT NULL;
-- Bodies lie apart: a change of state must not write a group's tokens again.
CREATE TABLE tickets (id INTEGER PRIMARY KEY REFERENCES groups (id), body BLOB NOT NULL) STRICT;
CREATE TABLE payloads (id INTEGER PRIMARY KEY REFERENCES groups (id), body BLOB NOT NULL) STRICT;
-- What was admitted is written down a second time, so that a row that vanishes unbalances the counts.
CREATE TABLE admissions (
    id INTEGER PRIMARY KEY,
    round INTEGER NOT NULL,
    source TEXT NOT NULL,
    groups INTEGER NOT NULL,
    admitted_at REAL NOT NULL
) STRICT;
CREATE TABLE commits (
    version INTEGER PRIMARY KEY,
    learner_step INTEGER NOT NULL,
    groups INTEGER NOT NULL,
    committed_at REAL NOT NULL
) STRICT;
"""


class LedgerError(RuntimeError):
    """The ledger was asked for something that would break its account. A fault of the program, not of its user."""


class PutResult(StrEnum):
    """What became of a group that was put."""

    STORED = "stored"
    SKIPPED = "skipped"
    DUPLICATE = "duplicate"
    """The group's row is no longer waiting for it: it arrived before, or it was given up. Counted, otherwise ignored."""
    FULL = "full"
    """Nothing was stored; try again when there is room."""


class LedgerCounts(Record):
    """How many groups stand where, recomputed from rows (rule 3)."""

    admitted: int = 0
    granted: int = 0
    ready: int = 0
    leased: int = 0
    consumed: int = 0
    skipped: dict[SkipReason, int] = Field(default_factory=dict)
    expired: int = 0
    failed: dict[Stage, int] = Field(default_factory=dict)
    duplicates: int = 0
    sources: dict[AnswerSource, int] = Field(
        default_factory=dict, description="of the admitted ones, where answers come from"
    )

    @property
    def remaining(self) -> int:
        """Groups that may still be learned from."""
        return self.granted + self.ready + self.leased

    @property
    def usable(self) -> int:
        """Groups that are scored and wait for the learner or are with it."""
        return self.ready + self.leased

    @property
    def balanced(self) -> bool:
        """Rule 3's identity: admitted = consumed + skipped + expired + failed + remaining."""
        gone = self.consumed + sum(self.skipped.values()) + self.expired + sum(self.failed.values())
        return self.admitted == gone + self.remaining

    def as_metrics(self) -> dict[str, float]:
        """The account as counters; what is skipped by reason, what failed by stage. Every stage and reason is there."""
        whole = {"admitted": self.admitted, "consumed": self.consumed, "expired": self.expired}
        return {
            **{f"groups_{name}_total": float(count) for name, count in whole.items()},
            **{
                labelled("groups_skipped_total", reason=reason): float(self.skipped.get(reason, 0))
                for reason in SkipReason
            },
            **{labelled("groups_failed_total", stage=stage): float(self.failed.get(stage, 0)) for stage in Stage},
        }

    def sentence(self) -> str:
        """The identity in words, parts that are 0 left out: `1024 admitted = 1024 consumed`."""
        parts = {"consumed": self.consumed}
        parts |= {f"skipped ({reason})": count for reason, count in self.skipped.items()}
        parts |= {"expired": self.expired}
        parts |= {f"failed ({stage})": count for stage, count in self.failed.items()}
        parts |= {"remaining": self.remaining}
        told = " + ".join(f"{count} {name}" for name, count in parts.items() if count)
        return f"{self.admitted} admitted {'=' if self.balanced else '≠'} {told or '0'}"


class GroupRow(Record):
    """One row of the ledger, for inspection and export. ``group`` is absent before scoring and where samples are not kept."""

    group_id: str
    source: AnswerSource
    round: int
    index: int
    attempt: int
    state: GroupState
    version: int
    produced_version: int | None
    stage: Stage | None
    reason: str | None
    bytes: int
    passes: int
    duplicates: int
    admitted_at: float
    updated_at: float
    sampled_at: float | None = None
    stored_at: float | None = None
    leased_at: float | None = None
    ticket: Ticket | None = None
    group: ScoredGroup | None = None


def pack(record: Ticket | ScoredGroup) -> bytes:
    """A record as compressed JSON."""
    return zlib.compress(record.model_dump_json().encode(), 1)


def unpack_ticket(body: bytes) -> Ticket:
    """The reverse of :func:`pack` for a ticket."""
    return Ticket.model_validate_json(zlib.decompress(body))


def unpack_group(body: bytes) -> ScoredGroup:
    """The reverse of :func:`pack` for a group."""
    return ScoredGroup.model_validate_json(zlib.decompress(body))


def policy_version(group: ResponseGroup) -> int | None:
    """The version whose answers staleness is measured from: the newest that wrote one. An opponent's answers are older on purpose.

    None: all answers come from outside, and staleness does not apply (rule 1).
    """
    return max((answer.version for answer in group.answers if answer.version is not None), default=None)


def to_row(row: sqlite3.Row) -> GroupRow:
    """A row of the table ``groups``, joined with its bodies, as a record."""
    return GroupRow(
        group_id=row["group_id"],
        source=AnswerSource(row["source"]),
        round=row["round"],
        index=row["idx"],
        attempt=row["attempt"],
        state=GroupState(row["state"]),
        version=row["version"],
        produced_version=row["produced_version"],
        stage=None if row["stage"] is None else Stage(row["stage"]),
        reason=row["reason"],
        bytes=row["bytes"],
        passes=0 if row["last_pass"] is None else row["last_pass"] + 1,
        duplicates=row["duplicates"],
        admitted_at=row["admitted_at"],
        updated_at=row["updated_at"],
        **{column: row[column] for column in PASSAGES if column in row.keys()},  # noqa: SIM118 - a row's `in` looks at values
        ticket=None if row["ticket"] is None else unpack_ticket(row["ticket"]),
        group=None if row["payload"] is None else unpack_group(row["payload"]),
    )
