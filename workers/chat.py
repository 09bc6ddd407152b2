"""What chat and comparisons say to samplers and scorers, and what these answer. Plain records: no engine, no ray."""

from __future__ import annotations

from pydantic import Field

from learner.records import FinishReason, Module, Record, SamplingParameters, ScorerIdentity

MAX_ANSWERS = 8
"""Answers of one request."""


class ChatRequest(Record):
    """What a person asks a sampler to write.

    ``version`` None asks the bare base. ``stop`` are strings that end an answer and are left out of it. ``logprobs``: so many of the
    likeliest tokens are told at each place beside the one that was drawn; None tells none. Answer k is drawn with seed ``seed + k``.
    ``request_id`` is of the REST request, for the log.
    """

    id: str
    module: Module = "fast"
    version: int | None = Field(ge=0)
    prompt_token_ids: tuple[int, ...] = Field(min_length=1)
    sampling: SamplingParameters
    answers: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    seed: int = Field(ge=0)
    stop: tuple[str, ...] = ()
    logprobs: int | None = Field(default=None, ge=0)
    request_id: str | None = None


class ChatBegun(Record):
    """A sampler has taken a request on. ``adapter_digest`` is of the bytes that its engine loaded; None for the bare base."""

    sampler: str
    adapter_digest: str | None


class TokenLogprob(Record):
    """A token's text and log-probability in nats (raw: before temperature), with the likeliest tokens of its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class ChatPiece(Record):
    """What an answer goes on with. ``tokens`` counts those behind ``text``, EOS included; the last piece has a ``finish_reason``."""

    answer: int
    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Verdict(Record):
    """What a scorer says of two answers to a prompt.

    ``ordered_logits[i][j]`` is its logit that answer i beats answer j when i is shown first; ``win_probability`` that the first answer
    beats the second, without position bias.
    """

    scorer: ScorerIdentity
    temperature: float
    ordered_logits: tuple[tuple[float, ...], ...]
    win_probability: float
    truncated_candidates: int
