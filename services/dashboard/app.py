"""Mounts the dashboard on the service's application."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

from services.api.context import Context
from services.api.headers import is_api
from services.dashboard import job_page, jobs_page, preferences_page, start_page
from services.dashboard.frame import STATIC_URL
from services.dashboard.session import Desk

RECONNECT_SECONDS = 30.0
"""How long a page's state is kept for a browser that went away: a phone that slept finds its page as it was."""


class DashboardMount(Mount):
    """Everything that is not the API's. What the API has no route for is its to refuse, with a problem document."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the dashboard answers this request."""
        return (Match.NONE, {}) if is_api(scope.get("path", "")) else super().matches(scope)


def install(app: FastAPI, shared: Context) -> None:
    """Mount the dashboard at ``/``. NiceGUI is one for the whole process, so a process has one dashboard.

    Args:
        app: the service's application, before it starts.
        shared: what its routes share.
    """
    desk = Desk(app, shared)
    for page in (jobs_page, start_page, job_page, preferences_page):
        page.register(desk)
    pages.add_static_files(STATIC_URL, Path(__file__).with_name("static"))
    ui.run_with(
        app,
        title="Sparring",
        favicon=Path(__file__).with_name("static") / "favicon.svg",
        dark=None,  # as the system has it
        language="en-US",
        reconnect_timeout=RECONNECT_SECONDS,
        tailwind=False,
        show_welcome_message=False,
    )
    routes: list[BaseRoute] = app.router.routes
    mount = routes.pop()
    assert isinstance(mount, Mount)
    routes.append(DashboardMount("/", app=mount.app))
