"""A chat model behind an OpenAI-compatible URL as a judge: A or B, in both orders, at temperature 0.

Its key comes from the environment alone (`KEY_VARIABLE`), goes to that URL alone (redirects are not followed), and stands in no message.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from learner.errors import InputError
from learner.records import Prompt, ScorerIdentity
from services.evaluation.judges import Progress, Verdicts
from workers.scorers.base import Comparison
from workers.scorers.text import strip_thinking

KEY_VARIABLE = "SPARRING_JUDGE_API_KEY"

TRIES = 5
LONGEST_PAUSE_SECONDS = 30.0
RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""Statuses that another try may mend."""

Choice = Literal["A", "B"]

SYSTEM = (
    "You are an impartial judge of answers that assistants wrote. Decide which answer serves the user better: correct, complete, helpful and "
    "well written. Neither the order in which answers stand nor their length is a reason. Say A or B and nothing else."
)

QUESTION = """<conversation>
{conversation}
</conversation>

<answer_A>
{a}
</answer_A>

<answer_B>
{b}
</answer_B>

Which answer is better? Say A or B and nothing else."""

_WORD = r"(?:answer|response|assistant|output)"
_ALONE = re.compile(rf"\W*(?:{_WORD}\W{{1,3}})?([AB])\W*", re.IGNORECASE)
_BRACKETED = re.compile(r"\[\[\s*([AB])\s*\]\]", re.IGNORECASE)
_DECLARED = re.compile(
    rf"(?:{_WORD}|verdict|decision|choice|winner|better|best)(?:\s+is\b|\s*[:=])\W*(?:{_WORD}\W{{1,3}})?(?-i:([AB]))\b"
    rf"|(?:choose|prefer|pick|select)\W+(?:{_WORD}\W{{1,3}})?(?-i:([AB]))\b",
    re.IGNORECASE,
)
_PRAISED = re.compile(
    r"\b([AB])\W{1,3}(?:wins\b|is\s+(?:\w+\s+){0,2}?(?:better|best|superior|stronger|preferable|winner)\b)"
)
_LETTER = re.compile(r"(?<![A-Za-z0-9'’])([AB])(?![A-Za-z0-9'’])")


class _Transient(Exception):
    """Another try may succeed."""


@dataclass(frozen=True)
class UrlJudge:
    """A judge behind a URL.

    Attributes:
        url: the API's base, as ``http://localhost:8000/v1``.
        model: which of its models.
        max_tokens: longest reply; a model that thinks aloud needs more.
        concurrency: requests at a time.
        timeout_seconds: longest wait for one reply.
        first_pause_seconds: before the first repetition of a failed request; it doubles each time.
    """

    url: str
    model: str
    max_tokens: int = 1024
    concurrency: int = 8
    timeout_seconds: float = 120.0
    first_pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        try:
            parts = httpx.URL(self.url)
        except httpx.InvalidURL:
            parts = httpx.URL("")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise InputError(
                f"--judge-url: {self.url!r} is no http or https address; write one as http://localhost:8000/v1"
            )
        if parts.userinfo:
            raise InputError(f"--judge-url: it holds a user or password; leave them out and set {KEY_VARIABLE}")

    @property
    def identity(self) -> ScorerIdentity:
        """The model and where it answers."""
        return ScorerIdentity(kind="url", name=self.model, version=self.url)

    def judge(self, comparisons: Sequence[Comparison], progress: Progress) -> Verdicts:
        """Ask about each comparison in both orders; equal answers are a tie without a question. Where a reply says neither A nor B, the
        comparison has no verdict, and is counted.

        Raises:
            InputError: the server cannot be reached, refuses, or does not answer as an OpenAI-compatible one does.
        """
        differing = [comparison for comparison in comparisons if len(set(comparison.answers)) > 1]
        replies = asyncio.run(self._ask_all(differing, progress))
        choices = [(read_choice(first), read_choice(second)) for first, second in replies]
        said = [choice for both in choices for choice in both]
        verdicts = iter(choices)
        return Verdicts(
            tuple(
                _preference(*next(verdicts)) if len(set(comparison.answers)) > 1 else 0.5 for comparison in comparisons
            ),
            {
                "judge_answers": len(said),
                "unparsable_judge_answers": said.count(None),
                "orders_that_disagree": sum(None not in both and both[0] == both[1] for both in choices),
            },
        )

    async def _ask_all(self, comparisons: Sequence[Comparison], progress: Progress) -> list[tuple[str, str]]:
        key = os.environ.get(KEY_VARIABLE)
        room = asyncio.Semaphore(self.concurrency)
        done, total = 0, 2 * len(comparisons)
        async with httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {}, timeout=self.timeout_seconds
        ) as client:

            async def ask(prompt: Prompt, a: str, b: str) -> str:
                nonlocal done
                async with room:
                    reply = await self._ask(client, prompt, a, b)
                done += 1
                progress("judging", done, total)
                return reply

            orders = [
                ask(comparison.prompt, *answers)
                for comparison in comparisons
                for answers in (comparison.answers, reversed(comparison.answers))
            ]
            replies = await asyncio.gather(*orders)
        return list(zip(replies[::2], replies[1::2], strict=True))

    async def _ask(self, client: httpx.AsyncClient, prompt: Prompt, a: str, b: str) -> str:
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": QUESTION.format(conversation=_conversation(prompt), a=a, b=b)},
            ],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        tries = AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(self.first_pause_seconds, LONGEST_PAUSE_SECONDS),
        )
        try:
            return await tries(self._once, client, body)
        except RetryError as error:
            raise InputError(
                f"--judge-url: {self.url} did not answer in {TRIES} tries ({error.last_attempt.exception()}); see that it runs, or lower "
                "--judge-concurrency"
            ) from None

    async def _once(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        try:
            answer = await client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            raise _Transient(f"no reply within {self.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise _Transient(str(error) or type(error).__name__) from None
        if answer.status_code in RETRIED:
            raise _Transient(f"status {answer.status_code}")
        if answer.status_code in (401, 403):
            raise InputError(
                f"--judge-url: {self.url} refuses the key (status {answer.status_code}); set {KEY_VARIABLE}"
            )
        if answer.status_code != 200:
            said = " ".join(answer.text.split())[:200]
            raise InputError(
                f"--judge-url: {self.url} answered with status {answer.status_code} ({said}); look at --judge-url and --judge-model"
            )
        try:
            content = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise InputError(f"--judge-url: {self.url} does not answer as an OpenAI-compatible server does") from None
        return content if isinstance(content, str) else ""


def read_choice(reply: str) -> Choice | None:
    """The answer that a judge's reply names, or None where it names none, or both.

    A lone letter; else the last ``[[A]]``; else the last verdict by name ("the better answer is A"); else the one that is praised ("A is
    better"), if it is only one; else the only capital letter that stands by itself.
    """
    text = strip_thinking(reply).strip()
    if alone := _ALONE.fullmatch(text):
        return _choice(alone[1])
    if bracketed := _BRACKETED.findall(text):
        return _choice(bracketed[-1])
    if declared := _DECLARED.findall(text):
        return _choice("".join(declared[-1]))
    praised, letters = set(_PRAISED.findall(text)), set(_LETTER.findall(text))
    if re.match(r"\W*A\s+(?!(?:or|and|is|was|wins)\b)[a-z]", text):
        letters.discard("A")  # an article that begins a sentence
    for found in (praised, letters):
        if len(found) == 1:
            return _choice(found.pop())
    return None


def _choice(letter: str) -> Choice:
    return "A" if letter.upper() == "A" else "B"


def _preference(first: Choice | None, second: Choice | None) -> float | None:
    """The first answer's share of two votes: it stood as A, and then as B."""
    if first is None or second is None:
        return None
    return ((first == "A") + (second == "B")) / 2


def _conversation(prompt: Prompt) -> str:
    return "\n\n".join(f"{message.role}: {message.text}" for message in prompt.messages)
