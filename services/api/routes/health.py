"""Probes and Prometheus metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.api.context import Shared
from services.api.guard import READ

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok", "service": "sparring"}


@router.get("/readyz")
def readyz(shared: Shared, response: Response) -> dict[str, str | dict[str, str]]:
    """Whether jobs can be taken: each check says `ok`, or what is wrong (the log has the details)."""
    checks: dict[str, str] = {}
    for name, check in shared.checks.items():
        try:
            check()
        except Exception as error:  # any fault means "not ready"
            checks[name] = type(error).__name__
        else:
            checks[name] = "ok"
    ready = all(result == "ok" for result in checks.values())
    response.status_code = 200 if ready else 503
    return {"status": "ready" if ready else "not ready", "checks": checks}


@router.get("/metrics", include_in_schema=False, dependencies=[READ])
def metrics(shared: Shared) -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(shared.registry), media_type=CONTENT_TYPE_LATEST)
