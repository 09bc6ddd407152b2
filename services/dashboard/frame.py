"""What every page has: a skip link, the header with its links, the switch between light and dark, and the place for its content."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from services.dashboard.session import THEME_COOKIE, Session

STATIC_URL = "/dashboard-static"
STYLE_VERSION = "1"
"""Raised when the style sheet changes, since browsers keep it."""

POLL_SECONDS = 1.0
"""Between two looks of an open page at the store."""

LOOKS_A_CHECK = 5
"""At every so many looks the page's key is checked: it may have been revoked since."""

RESPONSE_SECONDS = 60.0
"""Longest time that a page may take to be built: a store that others write to makes its readers wait."""

Theme = Literal["system", "light", "dark"]
THEMES: dict[Theme, bool | None] = {"system": None, "light": False, "dark": True}
"""What NiceGUI calls them."""


class Text(TextElement):
    """An HTML element with text in it: a heading, a paragraph, a cell. The text is shown as it is, never as HTML."""

    def __init__(self, tag: str, text: str = "", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        if classes:
            self.classes(classes)


def box(tag: str, classes: str = "", **attributes: str) -> ui.element:
    """An HTML element that holds others. Underscores in attributes' names stand for hyphens."""
    element = ui.element(tag).classes(classes)
    for name, value in attributes.items():
        element._props[name.replace("_", "-")] = value
    return element


def set_attribute(element: ui.element, name: str, value: str | None) -> None:
    """Change an element's HTML attribute, or take it away. The browser hears of it only when it differs."""
    if element._props.get(name) == value:
        return
    if value is None:
        element._props.pop(name, None)
    else:
        element._props[name] = value
    element.update()


@contextmanager
def frame(session: Session, title: str) -> Iterator[None]:
    """A page of the dashboard; what is made inside stands below its header.

    Args:
        session: whose page it is.
        title: of the page, which its window and its first heading carry.
    """
    ui.add_head_html(f'<link rel="stylesheet" href="{STATIC_URL}/dashboard.css?{STYLE_VERSION}">')
    ui.page_title(f"{title} · Sparring")
    with ui.header(fixed=False).classes("top"):
        ui.link("Sparring", "/").classes("brand")
        with box("nav", aria_label="Pages"):
            ui.link("Jobs", "/")
            ui.link("Start a job", "/start")
        _theme_switch(session.theme)
        if session.has_key:
            with box("form", "leave", method="post", action="/logout"):
                Text("span", session.caller.actor, "quiet")
                Text("button", "Sign out")
    with box("div", "content") as content:
        Text("h1", title)
        yield
    ui.skip_link("Skip to the content", target=content)


def every_second(session: Session, look: Callable[[], Awaitable[None]]) -> None:
    """Have the page look at the store again and again, as long as it is open and its person would still be let in."""
    looks = count()

    async def look_if_allowed() -> None:
        if next(looks) % LOOKS_A_CHECK == 0 and not await asyncio.to_thread(session.still_good):
            ui.navigate.to("/login")
            return
        await look()

    ui.timer(POLL_SECONDS, look_if_allowed)


def _theme_switch(given: str) -> None:
    theme: Theme = given if given in THEMES else "system"
    mode = ui.dark_mode(THEMES[theme])

    def change(event: Any) -> None:
        mode.value = THEMES[event.value]
        ui.run_javascript(
            f'document.cookie = "{THEME_COOKIE}={event.value}; Path=/; Max-Age=31536000; SameSite=Strict"'
        )

    switch = ui.select(list(THEMES), value=theme, label="Theme", on_change=change)
    switch.props("dense outlined options-dense").classes("theme")
