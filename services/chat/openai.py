"""OpenAI's chat and completion interfaces: what their requests may say, and how answers, streams and errors are written.

Only what is meant as asked is taken: a parameter that would have no effect is refused by its name, unless its value asks for nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learner.errors import InputError
from learner.records import Message, Record
from services.chat.desk import Wish
from services.jobs.problems import Spelt
from services.jobs.prompts import chat_turns, short
from workers.chat import MAX_ANSWERS, ChatPiece, TokenLogprob

MAX_STOPS = 8
TOP_LOGPROBS = 20

StopString = Annotated[str, Field(min_length=1)]


class StreamOptions(Record):
    """How a stream is told."""

    include_usage: bool = Field(default=False, description="Whether a last chunk tells the tokens used.")


class Body(BaseModel):
    """What both kinds of requests say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1, description="JOB, JOB@VERSION, JOB:slow, JOB:slow@VERSION or JOB:base; GET /v1/models lists them."
    )
    n: int = Field(default=1, ge=1, le=MAX_ANSWERS, description="Answers.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0: the likeliest. Default: the job's.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Default: the job's.")
    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer. Default: the job's.")
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] = Field(
        default=[], description="Strings that end an answer, and are left out of it."
    )
    seed: int | None = Field(default=None, description="The same seed again draws the same answer. Default: at random.")
    stream: bool = Field(default=False, description="Send the answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Your name for the person who asks. It has no effect.")
    presence_penalty: float = Field(default=0, ge=0, le=0, description="Only 0, no penalty, is taken.")
    frequency_penalty: float = Field(default=0, ge=0, le=0, description="Only 0, no penalty, is taken.")

    @model_validator(mode="before")
    @classmethod
    def _null_asks_for_nothing(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _options_are_of_a_stream(self) -> Body:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: it goes with stream: true only")
        return self

    def wish(self, *, max_tokens: int | None, logprobs: int | None) -> Wish:
        """What is asked of the sampler."""
        return Wish(
            answers=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=max_tokens,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            seed=self.seed,
            logprobs=logprobs,
        )

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the tokens used."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(Body):
    """A request to go on with a conversation."""

    messages: list[dict[str, Any]] = Field(
        min_length=1,
        description="Turns with `role` (system or developer first, then user and assistant) and `content`, text; the last is the user's.",
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, description="As max_tokens.")
    logprobs: bool = Field(default=False, description="Whether to tell each token's log-probability.")
    top_logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS, description="Likeliest tokens at each place.")

    @model_validator(mode="after")
    def _parameters_fit_together(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: it goes with logprobs: true only")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: it means the same as max_completion_tokens; send one of them")
        return self

    def turns(self) -> list[Message]:
        """The conversation.

        Raises:
            InputError: it is none; the sentence names the message.
        """
        rows = []
        for place, message in enumerate(self.messages):
            for key in message:
                if key not in ("role", "content") and message[key] is not None:
                    raise InputError(f"messages[{place}].{key}: a message has a role and content only; leave it out")
            role = message.get("role")
            rows.append({"role": "system" if role == "developer" else role, "content": message.get("content")})
        return chat_turns("messages", rows, what="a message")

    def asked(self) -> Wish:
        """What is asked of the sampler."""
        return self.wish(
            max_tokens=self.max_tokens or self.max_completion_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class CompletionBody(Body):
    """A request to go on with a text."""

    prompt: str | list[int] | list[str] = Field(
        description="The text, or its token ids. No chat template is put round it. A list of texts may hold one."
    )
    logprobs: int | None = Field(default=None, ge=0, le=5, description="Likeliest tokens told at each place.")

    def text(self) -> str | list[int]:
        """The one prompt.

        Raises:
            InputError: it is none, or several.
        """
        match self.prompt:
            case str() if self.prompt:
                return self.prompt
            case [str(single)] if single:
                return single
            case [int(), *_]:
                return [token for token in self.prompt if isinstance(token, int)]
        raise InputError(f"prompt: {short(self.prompt)} is not one text; send one prompt in each request")

    def asked(self) -> Wish:
        """What is asked of the sampler."""
        return self.wish(max_tokens=self.max_tokens, logprobs=self.logprobs)


class Usage(Record):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ModelEntry(Record):
    """One policy that can be chatted with."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sparring"


class ModelEntries(Record):
    """What can be chatted with."""

    object: Literal["list"] = "list"
    data: tuple[ModelEntry, ...]


class ErrorDetail(Record):
    """What went wrong, as OpenAI's clients read it."""

    message: Spelt
    type: str
    param: Spelt | None = None
    code: str | None = None


class ErrorBody(Record):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class AnswerMessage(Record):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Record):
    """One answer. Of a chat it has ``message``, of a text ``text``."""

    index: int
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class ChatChoice(Choice):
    """One answer of a chat."""

    message: AnswerMessage


class TextChoice(Choice):
    """One answer to a text."""

    text: str


class Completion(Record):
    """What both kinds of answers say. ``model`` names the very version; ``system_fingerprint`` is its adapter's digest."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    usage: Usage


class ChatCompletion(Completion):
    """The answers to a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: tuple[ChatChoice, ...]


class TextCompletion(Completion):
    """The answers to a text."""

    object: Literal["text_completion"] = "text_completion"
    choices: tuple[TextChoice, ...]


@dataclass
class _Answer:
    text: str = ""
    tokens: int = 0
    finish_reason: Literal["stop", "length"] = "length"
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Transcript:
    """Puts pieces together into OpenAI's objects: a whole answer, or the chunks of a stream.

    Args:
        chat: a conversation; else a text.
        model: who answers.
        prompt_tokens: tokens of the prompt.
        answers: how many there will be.
        logprobs: whether log-probabilities are told.
    """

    def __init__(self, *, chat: bool, model: str, prompt_tokens: int, answers: int, logprobs: bool) -> None:
        self.chat, self.model, self.prompt_tokens, self.logprobs = chat, model, prompt_tokens, logprobs
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.fingerprint: str | None = None
        self._answers = [_Answer() for _ in range(answers)]

    def first_chunks(self) -> list[dict[str, Any]]:
        """What a stream of a chat begins with: whose turn it is."""
        if not self.chat:
            return []
        start = {"role": "assistant", "content": "", "refusal": None}
        return [
            self._chunk({"index": place, "delta": start, "logprobs": None, "finish_reason": None})
            for place in range(len(self._answers))
        ]

    def add(self, piece: ChatPiece) -> dict[str, Any]:
        """Take a piece in; returns it as a chunk."""
        answer = self._answers[piece.answer]
        offset = len(answer.text)
        answer.text += piece.text
        answer.tokens += piece.tokens
        answer.logprobs += piece.logprobs
        if piece.finish_reason is not None:
            answer.finish_reason = "stop" if piece.finish_reason == "stop" else "length"
        part: dict[str, Any] = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        reason = None if piece.finish_reason is None else str(piece.finish_reason)
        logprobs = self._told(piece.logprobs, offset)
        return self._chunk({"index": piece.answer, **part, "logprobs": logprobs, "finish_reason": reason})

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that tells the tokens used."""
        return {**self._chunk(), "usage": self.usage.model_dump()}

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        written = sum(answer.tokens for answer in self._answers)
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=written,
            total_tokens=self.prompt_tokens + written,
        )

    def whole(self) -> ChatCompletion | TextCompletion:
        """All answers."""
        common: dict[str, Any] = {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "usage": self.usage,
        }
        choices = [
            {"index": place, "finish_reason": answer.finish_reason, "logprobs": self._told(answer.logprobs, 0)}
            for place, answer in enumerate(self._answers)
        ]
        if self.chat:
            turns = [AnswerMessage(content=answer.text) for answer in self._answers]
            spoken = tuple(ChatChoice(**choice, message=turn) for choice, turn in zip(choices, turns, strict=True))
            return ChatCompletion(**common, choices=spoken)
        texts = [answer.text for answer in self._answers]
        written = tuple(TextChoice(**choice, text=text) for choice, text in zip(choices, texts, strict=True))
        return TextCompletion(**common, choices=written)

    def texts(self) -> list[str]:
        """The answers' texts."""
        return [answer.text for answer in self._answers]

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }

    def _told(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            return {"content": [_entry(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets,
        }


def _entry(token: TokenLogprob) -> dict[str, Any]:
    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {**one(token.token, token.logprob), "top_logprobs": [one(*each) for each in token.top]}
