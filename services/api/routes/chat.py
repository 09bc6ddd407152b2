"""Chat with a job's policies as OpenAI's clients do it, and comparisons of two of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from learner.errors import InputError
from services.api import problems
from services.api.bodies import UniqueKeysRoute
from services.api.guard import READ, WRITE
from services.chat.compare import CompareBody, ComparisonResult, compare, orders_of
from services.chat.desk import ChatDesk, Order
from services.chat.errors import ChatUnavailable
from services.chat.names import UnknownModel
from services.chat.openai import (
    ChatBody,
    ChatCompletion,
    CompletionBody,
    ErrorBody,
    ErrorDetail,
    ModelEntries,
    ModelEntry,
    TextCompletion,
    Transcript,
)
from services.secrets import mask
from workers.chat import ChatBegun, ChatPiece
from workers.errors import WorkerError

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
RETRY_SECONDS = 5
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
TROUBLE = (ChatUnavailable, WorkerError, TimeoutError)
"""What keeps the service from answering although the request is right."""

EVENT_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ErrorBody,
        "description": description,
        "content": problems.responses(status)[status][
            "content"
        ],  # what is refused before the route is a problem document
    }
    for status, description in (
        (400, "The request is not right; `param` names the field."),
        (403, "The key's scope is too small."),
        (404, "There is no such job or version."),
        (413, "The body is too large."),
        (503, "Nobody can answer now; Retry-After says when to try again."),
    )
}


class OpenAiRoute(UniqueKeysRoute):
    """A route whose errors have OpenAI's shape, which OpenAI's clients read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, with its errors caught."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, InputError, HTTPException, *TROUBLE) as error:
                status, detail, headers = described(error)
                told = detail.model_copy(update={"message": mask(detail.message)})
                return JSONResponse(ErrorBody(error=told).model_dump(), status_code=status, headers=headers)

        return answer


router = APIRouter(tags=["chat"], route_class=OpenAiRoute, dependencies=[READ])
comparisons = APIRouter(tags=["chat"], route_class=UniqueKeysRoute, dependencies=[READ])


def _desk(request: Request) -> ChatDesk:
    desk: ChatDesk | None = request.app.state.chat
    if desk is None:
        raise HTTPException(503, "this service has no samplers for chat; start one with `sparring serve`")
    return desk


Desk = Annotated[ChatDesk, Depends(_desk)]


@router.get("/models", responses=ERRORS)
def models(
    desk: Desk, limit: Annotated[int, Query(ge=1, le=200, description="Of so many of the newest jobs.")] = 50
) -> ModelEntries:
    """What can be chatted with: of each job its policy, its versions, and its base."""
    found = desk.models(limit)
    return ModelEntries(
        data=tuple(ModelEntry(id=str(name), created=int(job.created_at.timestamp())) for name, job in found)
    )


@router.get("/models/{model}", responses=ERRORS)
def model(desk: Desk, model: str) -> ModelEntry:
    """One of them, by its name; of a job, the version that it stands for now."""
    job, name = desk.find(model)
    return ModelEntry(id=str(name), created=int(job.record.created_at.timestamp()))


@router.post(
    "/chat/completions",
    dependencies=[WRITE],
    response_model=ChatCompletion,
    responses={**ERRORS, 200: {"model": ChatCompletion, "content": EVENT_STREAM}},
)
async def chat(desk: Desk, body: ChatBody) -> Response | ChatCompletion:
    """Go on with a conversation.

    A job stands for its newest version while it trains, and for its best one once it has ended; `model` in the answer says which. With
    `stream` the answer comes as server-sent events.
    """
    order, _ = await asyncio.to_thread(desk.order_chat, body.model, body.turns(), body.asked())
    transcript = _transcript(order, chat=True)
    return cast("Response | ChatCompletion", await _answered(desk, order, transcript, body))


@router.post(
    "/completions",
    dependencies=[WRITE],
    response_model=TextCompletion,
    responses={**ERRORS, 200: {"model": TextCompletion, "content": EVENT_STREAM}},
)
async def complete(desk: Desk, body: CompletionBody) -> Response | TextCompletion:
    """Go on with a text, without a chat template."""
    order = await asyncio.to_thread(desk.order_text, body.model, body.text(), body.asked())
    transcript = _transcript(order, chat=False)
    return cast("Response | TextCompletion", await _answered(desk, order, transcript, body))


@comparisons.post("/jobs/{job_id}/compare", dependencies=[WRITE], responses=problems.responses(404, 503))
async def compare_versions(desk: Desk, job_id: str, body: CompareBody) -> ComparisonResult:
    """One prompt answered by two of the job's policies, and what the job's scorer says: its logits in both orders, and who wins."""
    try:
        orders, prompt = await asyncio.to_thread(orders_of, desk, job_id, body)
        return await compare(desk, orders, prompt)
    except UnknownModel as error:
        raise HTTPException(404, str(error)) from None
    except TROUBLE as error:
        raise HTTPException(503, str(error), headers={"Retry-After": str(_retry(error))}) from None


def described(error: Exception) -> tuple[int, ErrorDetail, dict[str, str]]:
    """Status, body and headers for an error."""
    match error:
        case RequestValidationError():
            first = error.errors()[0]
            param = ".".join(str(part) for part in first["loc"][1:]) or None
            if first["type"] == "extra_forbidden":
                message = f"{param}: this service does not support it; leave it out"
                return 400, _invalid(message, param, "unsupported_parameter"), {}
            message = first["msg"].removeprefix("Value error, ")
            return 400, _invalid(f"{param}: {message}" if param else message, param, "invalid_value"), {}
        case UnknownModel():
            return 404, _invalid(str(error), "model", "model_not_found"), {}
        case InputError():
            param, found, _ = str(error).partition(": ")
            named = param if found and " " not in param else None
            return 400, _invalid(str(error), named, "invalid_value"), {}
        case HTTPException():
            kind = "invalid_request_error" if error.status_code < 500 else "server_error"
            return error.status_code, ErrorDetail(message=str(error.detail), type=kind), dict(error.headers or {})
    return (
        503,
        ErrorDetail(message=str(error), type="server_error", code="unavailable"),
        {"Retry-After": str(_retry(error))},
    )


def _retry(error: Exception) -> int:
    return error.retry_seconds if isinstance(error, ChatUnavailable) else RETRY_SECONDS


def _invalid(message: str, param: str | None, code: str) -> ErrorDetail:
    return ErrorDetail(message=message, type="invalid_request_error", param=param, code=code)


def _transcript(order: Order, *, chat: bool) -> Transcript:
    request = order.request
    return Transcript(
        chat=chat,
        model=str(order.model),
        prompt_tokens=len(request.prompt_token_ids),
        answers=request.answers,
        logprobs=request.logprobs is not None,
    )


async def _answered(
    desk: ChatDesk, order: Order, transcript: Transcript, body: ChatBody | CompletionBody
) -> Response | ChatCompletion | TextCompletion:
    pieces = desk.answer(order)
    try:
        begun = await anext(pieces)  # before the status is sent, so that a refusal has its own
        transcript.fingerprint = begun.adapter_digest if isinstance(begun, ChatBegun) else None
        if body.stream:
            told = _chunks(pieces, transcript, usage=body.tells_usage)
            return EventSourceResponse(told, ping=KEEP_ALIVE_SECONDS, headers=STREAM_HEADERS)
        async for piece in pieces:
            if isinstance(piece, ChatPiece):
                transcript.add(piece)
    except BaseException:
        await pieces.aclose()
        raise
    return transcript.whole()


async def _chunks(
    pieces: AsyncGenerator[ChatBegun | ChatPiece], transcript: Transcript, *, usage: bool
) -> AsyncGenerator[ServerSentEvent]:
    nothing = {"usage": None} if usage else {}
    async with aclosing(pieces):
        for chunk in transcript.first_chunks():
            yield _event(chunk | nothing)
        try:
            async for piece in pieces:
                if isinstance(piece, ChatPiece):
                    yield _event(transcript.add(piece) | nothing)
        except (InputError, *TROUBLE) as error:
            yield _event(ErrorBody(error=described(error)[1]).model_dump())
            return
        except Exception:
            logger.exception("a stream of %s broke", transcript.model)
            broken = ErrorDetail(message="the answer broke off; the service's log says why", type="server_error")
            yield _event(ErrorBody(error=broken).model_dump())
            return
        if usage:
            yield _event(transcript.usage_chunk())
        yield ServerSentEvent(data="[DONE]")


def _event(data: Mapping[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(data, ensure_ascii=False))
