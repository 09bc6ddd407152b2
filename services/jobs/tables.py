"""Tables of the job store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A time with a zone, kept as UTC: SQLite itself forgets zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone; keep others as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be stored: {value.isoformat()}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        return None if value is None else value.replace(tzinfo=UTC)


class Text(TypeDecorator[str]):
    """Text as every database keeps it: PostgreSQL has no NUL and neither has lone surrogates, so they are kept as replacement characters."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what cannot be kept."""
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


class Base(DeclarativeBase):
    """Base of the store's tables. Constraint names are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, datetime: UtcTime, dict[str, Any]: JSON}  # noqa: RUF012 (SQLAlchemy reads it as a class attribute)


class JobRow(Base):
    """One job. ``number`` orders jobs as they were made; ``id`` is what people see.

    ``running_since`` and ``running_from`` say when the loop last began to turn, and how far the job was then.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "number"),
        Index(None, "state", "runner", "priority", "queued_at", "number"),
    )

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(Text(64), unique=True)
    name: Mapped[str] = mapped_column(Text(48))
    state: Mapped[str] = mapped_column(Text(16))
    spec: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    runner: Mapped[str] = mapped_column(Text(16))
    home: Mapped[str]
    idempotency_key: Mapped[str | None] = mapped_column(Text(255), unique=True)
    fingerprint: Mapped[str] = mapped_column(Text(64))
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempt: Mapped[int]
    restarts: Mapped[int]
    error_code: Mapped[str | None] = mapped_column(Text(64))
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]
    requested: Mapped[str | None] = mapped_column(Text(16))
    progress: Mapped[float]
    stage: Mapped[str | None]
    current_version: Mapped[int | None]
    best_version: Mapped[int | None]
    priority: Mapped[int] = mapped_column(server_default="0")
    running_since: Mapped[datetime | None]
    running_from: Mapped[float | None]


class LabelRow(Base):
    """One label of a job's metadata, to find the job by."""

    __tablename__ = "labels"

    name: Mapped[str] = mapped_column(Text(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text(512), primary_key=True)
    job_number: Mapped[int] = mapped_column(
        ForeignKey("jobs.number"), primary_key=True, autoincrement=False, index=True
    )


class RequestRow(Base):
    """One request that came with an idempotency key, and was done. ``fingerprint`` is of what it asked for."""

    __tablename__ = "requests"

    key: Mapped[str] = mapped_column(Text(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text(64))
    created_at: Mapped[datetime] = mapped_column(index=True)


class EventRow(Base):
    """One event. Rows are only ever added."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    kind: Mapped[str] = mapped_column(Text(64))
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class MetricRow(Base):
    """One value of one metric, or ``points`` of them that follow each other: their mean, lowest and highest, and the last one's step and
    time. ``low`` and ``high`` are absent where they are the value itself."""

    __tablename__ = "metrics"
    __table_args__ = (Index(None, "job_id", "name", "number"),)

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str] = mapped_column(Text(320))  # a prompt's domain may be part of it
    value: Mapped[float | None]
    version: Mapped[int | None]
    learner_step: Mapped[int | None]
    time: Mapped[datetime]
    points: Mapped[int] = mapped_column(server_default="1")
    low: Mapped[float | None]
    high: Mapped[float | None]


class PreferenceRow(Base):
    """One preference that a person sent. ``state``: waiting, taken (its group is in the replay ledger), or refused with a reason."""

    __tablename__ = "preferences"
    __table_args__ = (UniqueConstraint("job_id", "id"), Index(None, "job_id", "state", "number"))

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Text(255))
    digest: Mapped[str] = mapped_column(Text(64))
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(Text(16))
    reason: Mapped[str | None]
    created_at: Mapped[datetime]
    domain: Mapped[str | None] = mapped_column(Text(255))


class VersionRow(Base):
    """One published version."""

    __tablename__ = "versions"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    module: Mapped[str] = mapped_column(Text(16), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(Text(64))
    learner_step: Mapped[int]
    created_at: Mapped[datetime]
    metrics: Mapped[dict[str, Any]]
    best: Mapped[bool]


class ApiKeyRow(Base):
    """One API key. ``digest`` is of the key, which is not stored; ``id`` is its public part."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditRow(Base):
    """Who wrote what. Rows are only ever added; ``job_id`` is no foreign key, for a deleted job leaves its entries behind."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "job_id", "number"), Index(None, "key_id", "number"))

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[datetime]
    key_id: Mapped[str | None] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(255))
    job_id: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(128))
    status: Mapped[int | None]
