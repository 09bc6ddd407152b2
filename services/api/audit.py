"""Notes who wrote what. A write is acknowledged only when its entry is on disk."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.access import keys
from services.access.records import NewAuditEntry
from services.access.store import AccessStore
from services.api.guard import SAFE_METHODS, declared_scope
from services.api.threads import Threads

JOBS = "/v1/jobs/"


class Audit:
    """Notes every request to a route that needs more than reading, refused ones too."""

    def __init__(self, app: ASGIApp, store: AccessStore) -> None:
        self.app = app
        self.store = store
        self._threads = Threads("audit")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note how it ended before the answer begins."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self.app(scope, receive, send)
            return
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                await self._note(scope, message["status"], Headers(raw=message["headers"]).get("location", ""))
                began = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            if not began:
                await self._note(scope, 500, "")
            raise

    async def _note(self, scope: Scope, status: int, location: str) -> None:
        needs = declared_scope(scope.get("route"))
        if needs is None or not needs.includes(keys.Scope.WRITE):
            return
        caller = scope["caller"]
        made = urlsplit(location).path
        job_id = scope.get("path_params", {}).get("job_id") or (
            made.removeprefix(JOBS) if made.startswith(JOBS) else None
        )
        entry = NewAuditEntry(
            key_id=caller.key_id,
            actor=caller.actor,
            address=scope["client"][0] if scope.get("client") else None,
            action=f"{scope['method']} {scope['route'].path}",
            job_id=job_id,
            request_id=scope.get("request_id"),
            status=status,
        )
        await self._threads.run(self.store.note, entry)
