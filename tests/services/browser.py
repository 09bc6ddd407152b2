"""A real browser that can reach one service and nothing else, and remembers what it asked for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PageTimeout

CHROMIUM = Path("/usr/bin/chromium")
ROOT = Path(__file__).parents[2]

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

START_SECONDS = 90
"""Longest wait for a service to answer; the machine may be busy."""

PAGE_SECONDS = 30
"""Longest wait for something on a page."""

expect.set_options(timeout=PAGE_SECONDS * 1000)

SCREENSHOTS = "DASHBOARD_SCREENSHOTS"
"""Environment variable; where it is set, tests save the pictures of the README in docs/images."""

COLOURS = 96
"""Of such a picture."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    if not CHROMIUM.is_file():
        pytest.fail(
            f"there is no {CHROMIUM}; install it (apt-get install chromium): the dashboard is tested in a real browser"
        )
    # no other host can be reached; routes of Playwright would do it too, but they switch the browser's cache off
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One page, and what was wrong while it was open."""

    page: Page
    url: str
    foreign: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, address: str) -> None:
        """Go to a page, and wait until its content is there and the service hears what is done on it."""
        self.page.goto(f"{self.url}{address}")
        self.page.get_by_role("heading", level=1).wait_for()
        self.page.wait_for_function("window.did_handshake !== false")  # what is typed before it may overtake itself

    def fits(self) -> None:
        """Whether the page is no wider than the screen, once its layout has settled."""
        widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        with contextlib.suppress(PageTimeout):
            self.page.wait_for_function(f"(([wide, screen]) => wide <= screen)({widths})", timeout=5_000)
        wide, screen = self.page.evaluate(widths)
        assert wide <= screen, f"{self.page.url} is {wide} pixels wide on a screen of {screen}"

    def save(self, name: str) -> None:
        """Save a picture of what is on the screen for the README, where that was asked for. Few colours make a small file."""
        if os.environ.get(SCREENSHOTS):
            folder = ROOT / "docs" / "images"
            folder.mkdir(parents=True, exist_ok=True)
            self.page.evaluate("document.activeElement?.blur()")
            picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
            picture.quantize(COLOURS, dither=Image.Dither.NONE).save(folder / f"dashboard-{name}.png", optimize=True)


@contextlib.contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A new visitor of a service; at the end nothing was asked of another host, and no script has failed."""
    context = browser.new_context(**options)
    try:
        with visit_in(context, url) as visitor:
            yield visitor
    finally:
        context.close()


@contextlib.contextmanager
def visit_in(context: BrowserContext, url: str) -> Iterator[Visit]:
    """The same in a browser that has been there before, and has the service's scripts."""
    page = context.new_page()
    page.set_default_timeout(PAGE_SECONDS * 1000)
    visitor = Visit(page, url)

    def note(asked: str) -> None:
        if urlsplit(asked).scheme not in ("data", "blob") and urlsplit(asked).netloc != urlsplit(url).netloc:
            visitor.foreign.append(asked)

    page.on("request", lambda request: note(request.url))
    page.on("websocket", lambda opened: note(opened.url))
    page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
    page.on("console", lambda said: visitor.complaints.append(said.text) if said.type == "error" else None)
    try:
        yield visitor
        assert visitor.foreign == []
        assert visitor.complaints == []
    finally:
        page.close()


@dataclass(frozen=True)
class FilledService:
    """A service whose store holds jobs; ``ids`` are theirs, by what they are."""

    url: str
    home: Path
    ids: dict[str, str]


@contextlib.contextmanager
def filled_service(home: Path, **environment: str) -> Iterator[FilledService]:
    """`dashboard_server.py` on a free port, in a process of its own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI", "SPARRING"))}
    script = Path(__file__).with_name("dashboard_server.py")
    with socket.create_server(("127.0.0.1", 0)) as listening:  # handed over, so that nobody else takes the port
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, str(script), str(home), str(listening.fileno())],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**ours, "PYTHONPATH": str(ROOT), **environment},
            pass_fds=[listening.fileno()],
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the service did not start; its output says why"
        url = f"http://127.0.0.1:{port}"
        limit = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert process.poll() is None and time.monotonic() < limit, "the service does not answer"
            time.sleep(0.1)
        yield FilledService(url, home, json.loads(line))
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=START_SECONDS).is_success
    except httpx.TransportError:
        return False
