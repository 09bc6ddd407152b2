"""API keys and the audit in the job store's database. Keys are never deleted, so that the audit's ids keep their meaning."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import or_, select

from learner.errors import InputError
from services.access.keys import ApiKey, NewKey, Scope, key_digest, key_id, key_name
from services.access.records import AuditEntry, NewAuditEntry
from services.jobs.database import Database
from services.jobs.tables import ApiKeyRow, AuditRow

_NO_DIGEST = key_digest("")
"""Compared with where there is no such key, so that an unknown id takes as long as a wrong secret."""

SENT_CHARACTERS = 64
"""Of what a client sends that an entry of the audit keeps: it may ask for any job, and say behind a proxy that it has any address."""


class UnknownKey(InputError):
    """No key has this id."""


def _now() -> datetime:
    return datetime.now(UTC)


class AccessStore(Database):
    """Keys and the audit. Every method is one transaction.

    Args:
        url: an SQLAlchemy database URL, the job store's.
        clock: gives the time, with its zone.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = _now) -> None:
        super().__init__(url)
        self._clock = clock

    # --- keys

    def create_key(self, name: str, scope: Scope, expires_at: datetime | None = None) -> tuple[ApiKey, NewKey]:
        """A new key: its record, and the key itself, which nobody can look up later.

        Raises:
            InputError: the name is not allowed.
        """
        new = NewKey.make()
        row = ApiKeyRow(
            id=new.id,
            name=key_name(name),
            scope=scope,
            digest=key_digest(new.text),
            created_at=self._clock(),
            expires_at=expires_at,
        )
        with self._write() as session:
            session.add(row)
            session.flush()
            return _key(row), new

    def list_keys(self) -> list[ApiKey]:
        """All keys that were ever made, oldest first."""
        with self._read() as session:
            return [
                _key(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            ]

    def revoke_key(self, identity: str) -> ApiKey:
        """Make a key worthless from now on. Doing it again changes nothing.

        Raises:
            UnknownKey: there is none of that id.
        """
        with self._write() as session:
            row = session.get(ApiKeyRow, identity)
            if row is None:
                raise UnknownKey(f"ID: there is no key {identity!r}; `sparring keys list` shows the ids")
            row.revoked_at = row.revoked_at or self._clock()
            return _key(row)

    def find_key(self, text: str) -> ApiKey | None:
        """The key that somebody sent, also one that is good no more; None where it is none of ours."""
        identity = key_id(text)
        found, digest = None, _NO_DIGEST
        if identity is not None:
            with self._read() as session:
                row = session.get(ApiKeyRow, identity)
                if row is not None:
                    found, digest = _key(row), row.digest
        return found if hmac.compare_digest(key_digest(text), digest) else None

    def any_key(self) -> bool:
        """Whether a key was ever made."""
        with self._read() as session:
            return session.scalar(select(ApiKeyRow.id).limit(1)) is not None

    def any_good_key(self) -> bool:
        """Whether there is a key that is neither revoked nor expired."""
        good = (
            ApiKeyRow.revoked_at.is_(None),
            or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > self._clock()),
        )
        with self._read() as session:
            return session.scalar(select(ApiKeyRow.id).where(*good).limit(1)) is not None

    # --- audit

    def note(self, entry: NewAuditEntry) -> AuditEntry:
        """Add to the audit. It is on disk when this returns."""
        sent = {
            name: value and value[:SENT_CHARACTERS]
            for name, value in (("job_id", entry.job_id), ("address", entry.address))
        }
        row = AuditRow(time=self._clock(), **{**entry.model_dump(), **sent})
        with self._write() as session:
            session.add(row)
            session.flush()
            return _entry(row)

    def audit(
        self, *, limit: int = 50, before: int | None = None, job_id: str | None = None, key_id: str | None = None
    ) -> Sequence[AuditEntry]:
        """Entries, newest first: those below number ``before``, of one job, of one key."""
        query = select(AuditRow).order_by(AuditRow.number.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditRow.number < before)
        if job_id is not None:
            query = query.where(AuditRow.job_id == job_id)
        if key_id is not None:
            query = query.where(AuditRow.key_id == key_id)
        with self._read() as session:
            return [_entry(row) for row in session.scalars(query)]


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey.model_validate({name: getattr(row, name) for name in ApiKey.model_fields})


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry.model_validate({name: getattr(row, name) for name in AuditEntry.model_fields})
