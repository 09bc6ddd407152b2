"""Puts the REST API together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CollectorRegistry

from services.access.gate import Gate
from services.access.store import AccessStore
from services.api import openapi, problems
from services.api.audit import Audit
from services.api.context import Context
from services.api.guard import Guard, Identify
from services.api.limits import Limits
from services.api.middleware import BodyLimit, Envelope
from services.api.routes import (
    audit,
    chat,
    domains,
    files,
    health,
    history,
    jobs,
    login,
    preferences,
    samples,
    trace,
    versions,
)
from services.api.telemetry import JobCollector, RequestTelemetry
from services.api.threads import enlarge_shared
from services.chat.desk import ChatDesk, Samplers
from services.jobs.dispatcher import Dispatcher
from services.jobs.load import parse_job
from services.jobs.machine import Machine
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.jobs.validate import validate_job
from services.settings import Settings, is_loopback

EXPOSED_HEADERS = ("Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID")
"""What pages of origins that the operator allows may read beside the body."""

Admit = Callable[[Mapping[str, Any]], JobSpec]


def create_app(
    settings: Settings,
    store: JobStore,
    *,
    dispatcher: Dispatcher | None = None,
    samplers: Samplers | None = None,
    admit: Admit | None = None,
    checks: Mapping[str, Callable[[], None]] | None = None,
    dashboard: bool = False,
) -> FastAPI:
    """The application.

    Args:
        settings: of this installation.
        store: where jobs are.
        dispatcher: starts jobs while the application lives; without one, jobs are only taken in.
        samplers: write the answers of chat; without them nobody chats.
        admit: checks a job's data in place of :func:`admission`.
        checks: what `/readyz` asks beside the store and the dispatcher; each raises when it is not ready.
        dashboard: serve the pages for a browser too, at ``/``. A process can have them in one application only.
    """
    access = AccessStore(settings.store_url)
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
        lifespan=_lifespan(store, access, dispatcher, samplers),
    )
    app.state.context = Context(settings, store, access, admit or admission(settings), registry, ready)
    problems.install(app)
    for routes in (jobs, history, trace, samples, preferences, versions, domains, files, audit):
        app.include_router(routes.router, prefix="/v1")
    app.state.chat = None if samplers is None else ChatDesk(store, samplers)
    for router in (chat.router, chat.comparisons):
        app.include_router(router, prefix="/v1")
    for routes in (health, login):
        app.include_router(routes.router)
    openapi.install(app)
    if dashboard:
        # a second to import, which an application without pages need not pay
        from services.dashboard.app import install

        install(app, app.state.context)
    _add_middleware(app, settings, access, RequestTelemetry(registry))
    return app


def _add_middleware(app: FastAPI, settings: Settings, access: AccessStore, telemetry: RequestTelemetry) -> None:
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    app.state.gate = Gate(access, api_key, loopback=is_loopback(settings.host))
    # each is added round those before it: a request meets the last one first
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Audit, store=access)
    app.add_middleware(Guard, origins=settings.cors_origins)
    app.add_middleware(
        Limits,
        rate=settings.rate_limit,
        max_requests=settings.max_concurrent_requests,
        max_streams=settings.max_streams,
    )
    app.add_middleware(Identify, gate=app.state.gate)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(Envelope, telemetry=telemetry)


def admission(settings: Settings) -> Admit:
    """How a job that comes over REST is checked: its keys, its paths (inside the configured roots), and its parts together."""

    def admit(data: Mapping[str, Any]) -> JobSpec:
        machine = Machine.here() if settings.ray_address is None else None
        spec = parse_job(data)
        return validate_job(spec, Path.cwd(), allowed_roots=settings.readable_roots, machine=machine).spec

    return admit


def _lifespan(
    store: JobStore, access: AccessStore, dispatcher: Dispatcher | None, samplers: Samplers | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        enlarge_shared()
        stop = asyncio.Event()
        async with AsyncExitStack() as ends:  # in reverse order, and each whatever the ones before it came to
            ends.push_async_callback(asyncio.to_thread, access.close)
            ends.push_async_callback(asyncio.to_thread, store.close)
            if dispatcher is not None:
                ends.push_async_callback(asyncio.to_thread, dispatcher.stop)
                ends.push_async_callback(_ended, asyncio.create_task(dispatcher.run(stop)))
            if samplers is not None:  # they end while the cluster is there, which goes with the dispatcher
                ends.push_async_callback(_ended, asyncio.create_task(samplers.run(stop)))
            ends.callback(stop.set)
            yield

    return lifespan


async def _ended(task: asyncio.Task[None]) -> None:
    await task
