"""``sparring serve``: the service on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.settings import Settings

STREAM_END_SECONDS = 5
"""At the end, the time that open requests and streams have to finish."""


def serve(
    host: Annotated[str | None, typer.Option(help="Where to listen (SPARRING_HOST).", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one (SPARRING_PORT).", show_default=False)
    ] = None,
) -> None:
    """Take jobs over REST and run them. Running jobs go on when the service starts again."""
    from services.settings import Settings

    settings = Settings.load()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update=given)
    settings.check_exposure(lambda: _any_good_key(settings))
    listening = _listen(settings)  # first: a port that is taken should not cost the start of Ray
    try:
        _serve(settings, listening)
    finally:
        listening.close()


def _any_good_key(settings: Settings) -> bool:
    from services.access.store import AccessStore

    store = AccessStore(settings.store_url)
    try:
        return store.any_good_key()
    finally:
        store.close()


def _serve(settings: Settings, listening: socket.socket) -> None:
    import uvicorn

    from services.api.app import create_app
    from services.chat.samplers import RaySamplers
    from services.jobs.dispatcher import Dispatcher
    from services.jobs.launcher import Launcher
    from services.jobs.store import JobStore
    from services.secrets import log_safely
    from workers import cluster, process_tree

    log_safely(logging.WARNING, settings.log_format)
    local = settings.ray_address is None
    if local:  # whatever ends this process, SIGKILL included, its Ray ends with it
        process_tree.guard()
    store = JobStore(settings.store_url)
    store.check()
    typer.echo("Starting Ray" if local else f"Connecting to Ray at {settings.ray_address}")
    dispatcher = Dispatcher(
        store,
        Launcher(settings),
        max_running=settings.max_running_jobs,
        max_restarts=settings.max_job_restarts,
        requeue_on_stop=local,
    )

    def ray_answers() -> None:
        cluster.nodes()

    app = create_app(
        settings,
        store,
        dispatcher=dispatcher,
        samplers=RaySamplers(settings, store),
        checks={"ray": ray_answers},
        dashboard=True,
    )
    config = uvicorn.Config(
        app,
        log_config=None,  # through our own handler, which masks secrets
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STREAM_END_SECONDS,
    )
    server = uvicorn.Server(config)

    def leave(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn sets its own handlers while it serves, and sends itself the signal once more after; these make that harmless
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    typer.echo(f"Sparring answers at http://{shown}:{address[1]} (Ctrl-C ends it)")
    server.run(sockets=[listening])
    typer.echo("Ended.")


def _listen(settings: Settings) -> socket.socket:
    from learner.errors import InputError

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --port or --host"
        ) from None
