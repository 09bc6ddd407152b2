"""Preferences that people sent, in the job store: on disk before they are acknowledged (rule 11), each once (rule 10)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.orm import Session

from learner.config import ScheduleConfig
from learner.errors import InputError
from services.jobs.domains import DomainPlan
from services.jobs.history import History
from services.jobs.prompts import short
from services.jobs.records import (
    Preference,
    PreferencesReceipt,
    PreferenceTotals,
    RefusedPreference,
    StoredPreference,
)
from services.jobs.requests import fingerprint, first_time
from services.jobs.rows import job_row
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, StateConflict
from services.jobs.tables import PreferenceRow

WAITING, TAKEN, REFUSED = "waiting", "taken", "refused"

PARAMETERS = 500
"""Values in one query; databases take a limited number."""


def check_open(job_id: str, state: JobState, spec: JobSpec) -> None:
    """Refuse preferences for a job that will not learn from them.

    Raises:
        StateConflict: it has ended, or its file leaves no room for them.
    """
    if spec.feedback.share == 0:
        raise StateConflict(
            f"job {job_id} takes no preferences, because its feedback.share is 0; start a job with feedback.share above 0"
        )
    if state.terminal:
        raise StateConflict(f"job {job_id} is already {state}, so nobody would learn from preferences any more")


def check_domain(where: str, domain: str | None, spec: JobSpec) -> None:
    """Refuse a preference whose domain's turn never comes. Where a job mixes all prompts, any domain is a remark.

    Raises:
        InputError: the job learns domains one after another, and this is none of them.
    """
    known = spec.schedule.domains
    if domain is not None and known is not None and domain not in known:
        raise InputError(
            f"{where}: domain: {short(domain)} is none of the job's schedule.domains ({', '.join(known)}); name one of these, or "
            "leave it out"
        )


def check_not_past(where: str, domain: str | None, schedule: ScheduleConfig, version: int | None) -> None:
    """Refuse a preference whose domain's turn is over: nothing more is trained on its prompts.

    Args:
        where: the preference's place, for messages.
        domain: the preference's.
        schedule: the job's.
        version: the job's newest; None before version 0.

    Raises:
        InputError: its last version has been trained.
    """
    if domain is None or version is None:
        return
    for each in DomainPlan(schedule).domains:
        if each.name == domain and each.learned <= version:
            raise InputError(
                f"{where}: domain: {short(domain)} has been learned, with version {each.learned} as its last; leave domain out to let the "
                "job learn from this now"
            )


class PreferenceStore(History):
    """Preferences of jobs. Every method is one transaction."""

    def add_preferences(
        self, job_id: str, preferences: Sequence[Preference], *, idempotency_key: str | None = None
    ) -> PreferencesReceipt:
        """Store preferences: all of them, or none. One that is there already under its id is not stored again.

        Raises:
            UnknownJob: there is none of that id.
            StateConflict: the job takes no preferences, or no more.
            IdempotencyConflict: the key came with another request.
            InputError: an id came before with another preference, or a new one's domain has passed.
        """
        digests = [_digest(preference) for preference in preferences]
        ids = [preference.id or digest for preference, digest in zip(preferences, digests, strict=True)]
        new: list[dict[str, Any]] = []
        with self._write() as session:
            job = job_row(session, job_id, for_update=True)
            asked = f"send job {job_id} preferences of digest {fingerprint([*ids, *digests])}"
            if not first_time(session, idempotency_key, asked, self._clock()):
                return PreferencesReceipt(ids=tuple(ids), stored=0, known=len(ids))
            spec = JobSpec.model_validate(job.spec)
            check_open(job_id, JobState(job.state), spec)
            last = session.scalar(select(func.max(PreferenceRow.number)).where(PreferenceRow.job_id == job_id)) or 0
            known = _digests(session, job_id, ids)
            for place, (preference, identity, digest) in enumerate(zip(preferences, ids, digests, strict=True)):
                before = known.get(identity)
                if before is None:
                    known[identity] = digest
                    check_not_past(f"preferences[{place}]", preference.domain, spec.schedule, job.current_version)
                    row = {"job_id": job_id, "number": last + len(new) + 1, "id": identity, "digest": digest}
                    body = preference.model_copy(update={"id": identity}).model_dump(mode="json")
                    row |= {"state": WAITING, "created_at": self._clock(), "domain": preference.domain}
                    new.append({**row, "body": body})
                elif before != digest:
                    raise InputError(
                        f"preferences[{place}]: the id {identity!r} came before with another preference; send a new id"
                    )
            if new:
                session.execute(insert(PreferenceRow), new)
        return PreferencesReceipt(ids=tuple(ids), stored=len(new), known=len(ids) - len(new))

    def waiting_preferences(
        self, job_id: str, *, limit: int, after: int = 0, leave_out: Sequence[str] = ()
    ) -> list[StoredPreference]:
        """Those that wait for a ticket, the oldest first.

        Args:
            limit: at most so many.
            after: number of the last one already seen.
            leave_out: domains that are not asked for.
        """
        domain = PreferenceRow.domain
        query = (
            select(PreferenceRow)
            .where(PreferenceRow.job_id == job_id, PreferenceRow.state == WAITING, PreferenceRow.number > after)
            .where(or_(domain.is_(None), domain.not_in(leave_out)))
            .order_by(PreferenceRow.number)
            .limit(limit)
        )
        with self._read() as session:
            return [_stored(row) for row in session.scalars(query)]

    def preferences(self, job_id: str, numbers: Sequence[int]) -> list[StoredPreference]:
        """Preferences by their numbers; those that are not there are left out."""
        query = select(PreferenceRow).where(PreferenceRow.job_id == job_id, PreferenceRow.number.in_(numbers))
        with self._read() as session:
            return [_stored(row) for row in session.scalars(query)]

    def settle_preferences(self, job_id: str, numbers: Sequence[int]) -> None:
        """Write down that preferences were admitted to the replay queue. Doing it again changes nothing."""
        if not numbers:
            return
        mine = (PreferenceRow.job_id == job_id, PreferenceRow.number.in_(numbers))
        with self._write() as session:
            session.execute(update(PreferenceRow).where(*mine, PreferenceRow.state == WAITING).values(state=TAKEN))

    def refuse_preference(self, job_id: str, number: int, reason: str) -> None:
        """Write down why a preference cannot be learned from."""
        mine = (PreferenceRow.job_id == job_id, PreferenceRow.number == number)
        with self._write() as session:
            session.execute(update(PreferenceRow).where(*mine).values(state=REFUSED, reason=reason))

    def preference_totals(self, job_id: str) -> PreferenceTotals:
        """How many preferences of a job are in each state."""
        query = (
            select(PreferenceRow.state, func.count())
            .where(PreferenceRow.job_id == job_id)
            .group_by(PreferenceRow.state)
        )
        with self._read() as session:
            return PreferenceTotals.model_validate({state: count for state, count in session.execute(query)})

    def refused_preferences(self, job_id: str, limit: int) -> list[RefusedPreference]:
        """The newest refused ones."""
        query = (
            select(PreferenceRow)
            .where(PreferenceRow.job_id == job_id, PreferenceRow.state == REFUSED)
            .order_by(PreferenceRow.number.desc())
            .limit(limit)
        )
        with self._read() as session:
            return [RefusedPreference(id=row.id, reason=row.reason or "") for row in session.scalars(query)]


def _digests(session: Session, job_id: str, ids: Sequence[str]) -> dict[str, str]:
    """Those of the ids that are stored, with the digest of what was sent under them."""
    found: dict[str, str] = {}
    for start in range(0, len(ids), PARAMETERS):
        query = select(PreferenceRow.id, PreferenceRow.digest).where(
            PreferenceRow.job_id == job_id, PreferenceRow.id.in_(ids[start : start + PARAMETERS])
        )
        found |= {identity: digest for identity, digest in session.execute(query)}
    return found


def _digest(preference: Preference) -> str:
    said = preference.model_dump(mode="json", exclude={"id"})
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _stored(row: PreferenceRow) -> StoredPreference:
    return StoredPreference(
        number=row.number, id=row.id, digest=row.digest, preference=Preference.model_validate(row.body)
    )
