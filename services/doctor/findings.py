"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from learner.records import Record


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Jobs run, but slower or less safely, or only some of them."""
    PROBLEM = "problem"
    """Jobs will fail."""


class Finding(Record):
    """One thing that was looked at: what was found, and, where that is not well, what to do."""

    host: str
    subject: str
    status: Status
    found: str
    advice: str = ""


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status among them."""
    return max((finding.status for finding in findings), key=list(Status).index, default=Status.OK)
