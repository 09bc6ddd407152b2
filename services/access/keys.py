"""API keys: 256 random bits under a public id, of which the store keeps only a digest.

A key reads ``sparring_ID_SECRET``. The id finds it in the store, is safe to show, and says in lists and in the audit whose key it was.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import Field

from learner.errors import InputError
from learner.records import Record

SECRET_BYTES = 32

KEY_PATTERN = r"sparring_([a-z2-7]{8})_[A-Za-z0-9_-]{43}"
"""How a key reads; its group is the id. Secret scanners and the mask of the logs know it by this."""

NAME_LENGTH = 64

_DURATION = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Scope(StrEnum):
    """What a key may do. Each scope includes those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, other: Scope) -> bool:
        """Whether a key of this scope may do what ``other`` allows."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


class ApiKey(Record):
    """A key as the store knows it: never the key itself."""

    id: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None = Field(description="not good from then on; null: until it is revoked")
    revoked_at: datetime | None

    def good_at(self, time: datetime) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or time < self.expires_at)

    def state_at(self, time: datetime) -> str:
        """The same in a word: ``good``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "good" if self.good_at(time) else "expired"


@dataclass(frozen=True)
class NewKey:
    """A key at its creation, the only time that its ``text`` is known. It is not shown when the object is printed."""

    id: str
    text: str = field(repr=False)

    @classmethod
    def make(cls) -> NewKey:
        """A random one."""
        identity = base64.b32encode(secrets.token_bytes(5)).decode().lower()
        return cls(identity, f"sparring_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}")


def key_id(text: str) -> str | None:
    """The id of a text that reads like a key, or None."""
    match = re.fullmatch(KEY_PATTERN, text)
    return None if match is None else match[1]


def key_digest(text: str) -> str:
    """What is kept of a key. One round of SHA-256 is enough for 256 random bits: there is no dictionary to try."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_name(text: str) -> str:
    """A key's name, checked: it goes into tables and logs.

    Raises:
        InputError: it is empty, too long, or has characters that do not print.
    """
    if not 0 < len(text) <= NAME_LENGTH or not text.isprintable() or text != text.strip():
        raise InputError(f"NAME: {text!r} is not a name; use 1 to {NAME_LENGTH} printable characters")
    return text


def expiry(text: str, now: datetime) -> datetime:
    """When a key ends: a time from now (``90d``, ``12h``, ``30m``, ``2w``), or a date or time in ISO 8601, UTC without a zone.

    Raises:
        InputError: the text is neither, or the time has passed.
    """
    try:
        if match := _DURATION.fullmatch(text):
            time = now + timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            time = datetime.fromisoformat(text)
            time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(
            f"--expires: {text!r} is no time; use for example 90d, 12h, 2027-01-31 or 2027-01-31T12:00:00+01:00"
        ) from None
    if time <= now:
        raise InputError(f"--expires: {text!r} has passed; give a time to come")
    return time
