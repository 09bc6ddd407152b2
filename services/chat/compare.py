"""One prompt answered by two of a job's policies, and what the job's scorer says of the answers."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from learner.errors import InputError
from learner.records import FinishReason, Message, Prompt, Record, ScorerIdentity
from services.chat.desk import SEEDS, ChatDesk, Order, Wish
from services.chat.names import parse_variant
from services.jobs.prompts import chat_turns
from workers.chat import ChatPiece

Variant = Annotated[int, Field(ge=0)] | str


class CompareBody(Record):
    """Which two policies answer what."""

    prompt: str | None = Field(default=None, min_length=1, description="The user's question; or send messages.")
    messages: tuple[dict[str, JsonValue], ...] = Field(
        default=(), description="Chat messages that end with the user's; or send prompt."
    )
    versions: tuple[Variant, Variant] = Field(
        description="Two of the job's policies: a version's number, `slow`, `slow@VERSION` or `base`.",
        examples=[[0, 3], ["base", "slow"]],
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default: the job's.")
    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer. Default: the job's.")
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="Of both answers.")

    def turns(self) -> list[Message]:
        """The conversation.

        Raises:
            InputError: it is none, or both prompt and messages were sent.
        """
        if (self.prompt is None) == (not self.messages):
            raise InputError("prompt: send either a prompt or messages")
        return chat_turns("messages" if self.messages else "prompt", self.prompt or list(self.messages))


class ComparedAnswer(Record):
    """What one policy answered. ``model`` names it; ``adapter_digest`` is what its sampler loaded, None for the base."""

    model: str
    adapter_digest: str | None
    text: str
    tokens: int
    finish_reason: FinishReason


class ComparisonVerdict(Record):
    """What the scorer says.

    ``ordered_logits[i][j]`` is its logit that answer i beats answer j when i is shown first; ``logit`` is what is left of both orders when
    position bias cancels, ½(m[0][1] − m[1][0]); ``win_probability`` = σ(logit / temperature) that the first answer beats the second.
    """

    scorer: ScorerIdentity
    ordered_logits: tuple[tuple[float, ...], ...]
    logit: float
    temperature: float
    win_probability: float
    winner: Literal["first", "second", "tie"]
    truncated_candidates: int


class ComparisonResult(Record):
    """Both answers side by side, in the order of ``versions``, and the verdict."""

    prompt: tuple[Message, ...]
    answers: tuple[ComparedAnswer, ComparedAnswer]
    verdict: ComparisonVerdict


async def compare(desk: ChatDesk, orders: tuple[Order, Order], prompt: Prompt) -> ComparisonResult:
    """Have both orders written, one after the other so that they take one place of chat, and judged.

    Raises:
        ChatUnavailable, WorkerError, CallTimeout: nobody can do it now.
    """
    first, second = [await _written(desk, order) for order in orders]
    verdict = await desk.samplers.compare(orders[0].job, prompt, (first.text, second.text))
    logit = (verdict.ordered_logits[0][1] - verdict.ordered_logits[1][0]) / 2
    return ComparisonResult(
        prompt=prompt.messages,
        answers=(first, second),
        verdict=ComparisonVerdict(
            scorer=verdict.scorer,
            ordered_logits=verdict.ordered_logits,
            logit=logit,
            temperature=verdict.temperature,
            win_probability=verdict.win_probability,
            winner="tie" if logit == 0 else "first" if logit > 0 else "second",
            truncated_candidates=verdict.truncated_candidates,
        ),
    )


def orders_of(desk: ChatDesk, job_id: str, body: CompareBody) -> tuple[tuple[Order, Order], Prompt]:
    """What each of the two is asked, and the prompt that both read.

    Raises:
        UnknownModel, InputError: as :meth:`ChatDesk.order_chat`.
    """
    wish = Wish(temperature=body.temperature, max_tokens=body.max_tokens, seed=body.seed)
    turns = body.turns()
    names = [parse_variant(job_id, variant) for variant in body.versions]
    (first, prompt), (second, _) = (desk.order_chat(name, turns, wish) for name in names)
    return (first, second), prompt


async def _written(desk: ChatDesk, order: Order) -> ComparedAnswer:
    digest, text, tokens, reason = None, "", 0, FinishReason.LENGTH
    async with aclosing(desk.answer(order)) as pieces:
        async for piece in pieces:
            if isinstance(piece, ChatPiece):
                text, tokens = text + piece.text, tokens + piece.tokens
                reason = piece.finish_reason or reason
            else:
                digest = piece.adapter_digest
    return ComparedAnswer(model=str(order.model), adapter_digest=digest, text=text, tokens=tokens, finish_reason=reason)
