"""Bounds on requests over time, and on requests and streams at the same time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from services.access import keys
from services.access.gate import Caller, Unknown
from services.api.app import create_app
from services.api.limits import Limits
from services.jobs.load import parse_job
from services.jobs.store import JobStore
from services.settings import Settings

App = Callable[[Scope, Receive, Send], Awaitable[None]]
HERE = Caller(keys.Scope.ADMIN, "local")


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("fine")(scope, receive, send)


class Held:
    """An application whose answers begin at once and end when it is let go."""

    def __init__(self, media_type: str = "text/plain") -> None:
        self.media_type = media_type
        self.begun = 0
        self.let_go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def body() -> object:
            self.begun += 1
            yield b"."
            await self.let_go.wait()

        await StreamingResponse(body(), media_type=self.media_type)(scope, receive, send)  # type: ignore[arg-type]


async def ask(
    app: App,
    *,
    caller: Caller | Unknown = HERE,
    address: str = "127.0.0.1",
    path: str = "/v1/jobs",
    accept: str = "application/json",
    kind: str = "http",
) -> Message:
    """The first message of the answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "GET", "path": path, "headers": [(b"accept", accept.encode())]}
    await app(scope | {"client": (address, 1), "caller": caller}, receive, send)
    return sent[0]


def headers(message: Message) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in message["headers"]}


async def begun(held: Held, count: int) -> None:
    async with asyncio.timeout(10):
        while held.begun < count:
            await asyncio.sleep(0.001)


async def test_too_many_requests_are_told_when_to_come_back() -> None:
    app = Limits(fine, rate="3/minute", max_requests=10, max_streams=10)
    for remaining in (2, 1, 0):
        answer = await ask(app)
        assert answer["status"] == 200
        assert headers(answer)["ratelimit-policy"] == '"default";q=3;w=60'
        assert re.fullmatch(rf'"default";r={remaining};t=(59|60)', headers(answer)["ratelimit"])
    refused = await ask(app)
    assert refused["status"] == 429 and headers(refused)["content-type"] == "application/problem+json"
    assert 58 <= int(headers(refused)["retry-after"]) <= 60
    assert headers(refused)["ratelimit"].startswith('"default";r=0;')
    for _ in range(5):
        assert (await ask(app, path="/healthz"))["status"] == 200  # probes are not counted


async def test_the_window_moves() -> None:
    app = Limits(fine, rate="2/second", max_requests=10, max_streams=10)
    assert [(await ask(app))["status"] for _ in range(3)] == [200, 200, 429]
    await asyncio.sleep(1.1)
    assert (await ask(app))["status"] == 200


async def test_each_key_has_its_own_rate_wherever_it_is_and_strangers_have_one_by_address() -> None:
    app = Limits(fine, rate="1/minute", max_requests=10, max_streams=10)
    anna, bert = (Caller(keys.Scope.READ, "same name", key_id) for key_id in ("aaaaaaaa", "bbbbbbbb"))
    stranger = Unknown("no key", wrong=False)
    assert (await ask(app, caller=anna))["status"] == 200
    assert (await ask(app, caller=anna, address="10.0.0.2"))["status"] == 429
    assert (await ask(app, caller=bert))["status"] == 200
    assert (await ask(app, caller=stranger))["status"] == 200
    assert (await ask(app, caller=stranger))["status"] == 429
    assert (await ask(app, caller=stranger, address="10.0.0.2"))["status"] == 200


async def test_streams_and_requests_do_not_take_each_others_places() -> None:
    held = Held()
    app = Limits(held, rate="1000/minute", max_requests=2, max_streams=1)
    open_requests = [asyncio.create_task(ask(app)) for _ in range(2)]
    await begun(held, 2)
    full = await ask(app)
    assert full["status"] == 503 and headers(full)["retry-after"] == "1"
    stream = asyncio.create_task(ask(app, accept="text/event-stream"))
    await begun(held, 3)
    assert (await ask(app, accept="text/event-stream"))["status"] == 503
    assert (await ask(app, kind="websocket")) == {
        "type": "websocket.close",
        "code": 1013,
        "reason": "too many connections",
    }
    held.let_go.set()
    assert [(await each)["status"] for each in (*open_requests, stream)] == [200, 200, 200]
    assert (await ask(app))["status"] == 200  # every place was given back


async def test_an_answer_that_turns_out_to_be_a_stream_gives_its_place_among_the_requests_back() -> None:
    held = Held("text/event-stream")
    app = Limits(held, rate="1000/minute", max_requests=1, max_streams=1)
    chat = asyncio.create_task(ask(app))
    await begun(held, 1)
    second = asyncio.create_task(ask(app))
    await begun(held, 2)  # the first one's place was free; among the streams there is none, so this one keeps its own
    assert (await ask(app))["status"] == 503
    held.let_go.set()
    await asyncio.gather(chat, second)
    assert (await ask(app))["status"] == 200


@given(outcomes=st.lists(st.sampled_from(["good", "raises", "stream"]), max_size=30))
@settings(max_examples=25)
def test_whatever_happens_every_place_is_given_back(outcomes: list[str]) -> None:
    left = iter(outcomes)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        outcome = next(left)
        if outcome == "raises":
            raise RuntimeError(outcome)
        media_type = "text/event-stream" if outcome == "stream" else "text/plain"
        await PlainTextResponse("x", media_type=media_type)(scope, receive, send)

    limits = Limits(app, rate="100000/minute", max_requests=1, max_streams=1)

    async def play() -> None:
        for outcome in outcomes:
            if outcome == "raises":
                with pytest.raises(RuntimeError):
                    await ask(limits)
            else:
                assert (await ask(limits))["status"] == 200

    asyncio.run(play())


async def test_the_service_keeps_its_settings(tmp_path: Path) -> None:
    given = Settings(home=tmp_path, rate_limit="2/minute")
    store = JobStore(given.store_url)
    transport = httpx.ASGITransport(create_app(given, store, admit=parse_job))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        codes = [(await http.get("/v1/jobs")).status_code for _ in range(3)]
        stream = await http.get("/v1/jobs/none/events", headers={"Accept": "text/event-stream"})
        problem = (await http.get("/v1/jobs")).json()
    assert codes == [200, 200, 429]
    assert stream.status_code == 404  # counted beside
    assert problem["code"] == "too_many_requests" and "SPARRING_RATE_LIMIT" in problem["detail"]
    store.close()
