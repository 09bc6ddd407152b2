"""What the routes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from services.access.store import AccessStore
from services.jobs.layout import JobPaths
from services.jobs.records import JobRecord
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.settings import Settings


@dataclass(frozen=True)
class Context:
    """The service's parts, made once with the application.

    ``admit`` makes a checked job from a request's data; ``checks`` raise when the service is not ready.
    """

    settings: Settings
    store: JobStore
    access: AccessStore
    admit: Callable[[Mapping[str, Any]], JobSpec]
    registry: CollectorRegistry
    checks: Mapping[str, Callable[[], None]]


def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


Shared = Annotated[Context, Depends(_context)]


def paths_of(job: JobRecord) -> JobPaths:
    """Where the job's files lie."""
    return JobPaths(Path(job.home), job.id)
