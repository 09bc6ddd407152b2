"""JSON bodies in which a key stands twice: refused, as in job files. Python would take the last in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from learner.errors import InputError
from services.jobs.problems import unique_keys


class UniqueKeysRoute(APIRoute):
    """A route that takes a JSON body.

    Raises:
        InputError: a key stands twice in it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, after a look at the body."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if request.method == "POST":
                try:
                    json.loads(await request.body(), object_pairs_hook=unique_keys)
                except InputError:
                    raise
                except (ValueError, RecursionError):  # empty, or not JSON: FastAPI says so where it matters
                    pass
            return await handle(request)

        return answer
