"""The audit's records, the same that the REST API writes as JSON."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from learner.records import Record

LOCAL = "local"
"""Who did something without a key: a person of this machine, by the service on loopback or by the command line."""

INSTALLATION = "SPARRING_API_KEY"
"""Who did something with the installation's own key."""


class NewAuditEntry(Record):
    """A write that is yet to be noted; the audit gives it its number and time."""

    key_id: str | None = Field(default=None, description="of a key of `sparring keys`; null without one")
    actor: str = Field(
        description="the key's name; `SPARRING_API_KEY` for the installation's own, `local` without a key"
    )
    address: str | None = Field(default=None, description="of the client; null for the command line")
    action: str = Field(description="the request's method and route, or the command")
    job_id: str | None = None
    request_id: str | None = None
    status: int | None = Field(default=None, description="of the HTTP answer; null for the command line")


class AuditEntry(NewAuditEntry):
    """Who wrote what. Entries are only ever added; ``number`` counts up."""

    number: int
    time: datetime
