"""Puts the REST API together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from services.api import problems
from services.api.context import Context
from services.api.middleware import BodyLimit, Envelope, Guard
from services.api.routes import domains, files, health, history, jobs, preferences, samples, versions
from services.api.telemetry import JobCollector, RequestTelemetry
from services.jobs.dispatcher import Dispatcher
from services.jobs.load import parse_job
from services.jobs.machine import Machine
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.jobs.validate import validate_job
from services.settings import Settings

Admit = Callable[[Mapping[str, Any]], JobSpec]


def create_app(
    settings: Settings,
    store: JobStore,
    *,
    dispatcher: Dispatcher | None = None,
    admit: Admit | None = None,
    checks: Mapping[str, Callable[[], None]] | None = None,
    dashboard: bool = False,
) -> FastAPI:
    """The application.

    Args:
        settings: of this installation.
        store: where jobs are.
        dispatcher: starts jobs while the application lives; without one, jobs are only taken in.
        admit: checks a job's data in place of :func:`admission`.
        checks: what `/readyz` asks beside the store and the dispatcher; each raises when it is not ready.
        dashboard: serve the pages for a browser too, at ``/``. A process can have them in one application only.
    """
    registry = CollectorRegistry()
    registry.register(JobCollector(store))
    ready: dict[str, Callable[[], None]] = {"store": store.check, **(checks or {})}
    if dispatcher is not None:
        ready["dispatcher"] = dispatcher.check
    app = FastAPI(
        title="Sparring",
        description="Align a language model by letting it play against itself.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan(store, dispatcher),
    )
    app.state.context = Context(settings, store, admit or admission(settings), registry, ready)
    problems.install(app)
    for routes in (jobs, history, samples, preferences, versions, domains, files):
        app.include_router(routes.router, prefix="/v1")
    app.include_router(health.router)
    if dashboard:
        # a second to import, which an application without pages need not pay
        from services.dashboard.app import install

        install(app, app.state.context)
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, api_key=api_key)
    app.add_middleware(Envelope, telemetry=RequestTelemetry(registry))  # added last: outermost
    return app


def admission(settings: Settings) -> Admit:
    """How a job that comes over REST is checked: its keys, its paths (inside the configured roots), and its parts together."""

    def admit(data: Mapping[str, Any]) -> JobSpec:
        machine = Machine.here() if settings.ray_address is None else None
        spec = parse_job(data)
        return validate_job(spec, Path.cwd(), allowed_roots=settings.readable_roots, machine=machine).spec

    return admit


def _lifespan(store: JobStore, dispatcher: Dispatcher | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        stop = asyncio.Event()
        looking = asyncio.create_task(dispatcher.run(stop)) if dispatcher is not None else None
        try:
            yield
        finally:
            stop.set()
            if looking is not None and dispatcher is not None:
                await looking
                await asyncio.to_thread(dispatcher.stop)
            await asyncio.to_thread(store.close)

    return lifespan
