"""Whose page it is, and what they may do on it.

The guard at the service's door lets a page and its websocket in. A page stays open for hours and acts over its websocket, where the guard
sees no single request: so the key is looked at again before each act, acts ask their scope here, and are noted in the audit here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from fastapi import FastAPI, Request

from learner.errors import InputError
from services.access.gate import Caller, Gate
from services.access.keys import Scope
from services.access.records import NewAuditEntry
from services.api.context import Context
from services.api.guard import KEY_COOKIE, caller_of

Result = TypeVar("Result")

THEME_COOKIE = "sparring_theme"
"""What the switch between light and dark was set to; no secret, and the page's script writes it."""


class NotAllowed(InputError):
    """The page's person may not do this, or not any more."""


@dataclass(frozen=True)
class Desk:
    """What the pages share: the service's parts, and the application, which has the gate once it is whole."""

    app: FastAPI
    shared: Context

    @property
    def gate(self) -> Gate:
        """Tells callers apart."""
        gate: Gate = self.app.state.gate
        return gate


class Session:
    """One open page and its person.

    Args:
        desk: what the pages share.
        request: with which the browser opened the page; the guard let it in.
    """

    def __init__(self, desk: Desk, request: Request) -> None:
        self._desk = desk
        self._key = request.cookies.get(KEY_COOKIE)
        self._address = request.client.host if request.client else None
        self.caller = caller_of(request)
        self.theme = request.cookies.get(THEME_COOKIE, "system")

    @property
    def may_write(self) -> bool:
        """Whether the person may change something; buttons that do are shown only then."""
        return self.caller.scope.includes(Scope.WRITE)

    @property
    def has_key(self) -> bool:
        """Whether the person came in with a key, and can leave."""
        return not self.caller.is_local

    def still_good(self) -> bool:
        """Whether the person would be let in again now: keys expire and are revoked. Reads the store."""
        return isinstance(self._desk.gate.identify(self._key, datetime.now(UTC)), Caller)

    async def write(self, action: str, job_id: str | None, act: Callable[[], Result]) -> Result:
        """Do something that changes the service's state, in a thread, and note it in the audit however it ends.

        Args:
            action: what it is, as the audit has it: the REST route that does the same.
            job_id: the job that it is about; None: the one that ``act`` makes.
            act: does it.

        Raises:
            NotAllowed: the person's key is good no more, or has too small a scope.
            InputError: what ``act`` complains about.
        """
        return await asyncio.to_thread(self._write, action, job_id, act)

    def _write(self, action: str, job_id: str | None, act: Callable[[], Result]) -> Result:
        status = 500
        try:
            self._check()
            result = act()
            status = 200
        except NotAllowed:
            status = 403
            raise
        except InputError:
            status = 422
            raise
        finally:
            made = getattr(result, "id", None) if status == 200 else None
            self._note(action, job_id or made, status)
        return result

    def _check(self) -> None:
        if not self.still_good():
            raise NotAllowed("your key is good no more; sign in with another one")
        if not self.may_write:
            raise NotAllowed(f"your key has the scope {self.caller.scope}; this needs {Scope.WRITE}")

    def _note(self, action: str, job_id: str | None, status: int) -> None:
        entry = NewAuditEntry(
            key_id=self.caller.key_id,
            actor=self.caller.actor,
            address=self._address,
            action=action,
            job_id=job_id,
            request_id=None,
            status=status,
        )
        self._desk.shared.access.note(entry)
