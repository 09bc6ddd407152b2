"""What vLLM's partial outputs say in our own words (rule 17)."""

from __future__ import annotations

from typing import Any

from learner.records import FinishReason
from workers.chat import ChatPiece, TokenLogprob
from workers.sampler.errors import SamplerError


def chat_piece(completion: Any, likeliest: int | None) -> ChatPiece:
    """A piece of one answer, of a vLLM ``CompletionOutput`` that holds what is new.

    Args:
        completion: vLLM's.
        likeliest: so many of the likeliest tokens are told at each place.

    Raises:
        SamplerError: vLLM ended the answer for a reason that there is no word for.
    """
    reason = completion.finish_reason
    if reason not in (None, FinishReason.STOP, FinishReason.LENGTH):
        raise SamplerError(f"vLLM ended an answer with {reason!r}, which is neither stop nor length")
    return ChatPiece(
        answer=completion.index,
        text=completion.text,
        tokens=len(completion.token_ids),
        finish_reason=None if reason is None else FinishReason(reason),
        logprobs=tuple(
            _told(place, token, likeliest or 0)
            for place, token in zip(completion.logprobs or (), completion.token_ids, strict=False)
        ),
    )


def _told(place: Any, token: int, likeliest: int) -> TokenLogprob:
    """vLLM gives the drawn token beside the likeliest; it may be among them."""
    ranked = sorted((entry for entry in place.values() if entry.rank is not None), key=lambda entry: entry.rank)
    return TokenLogprob(
        token=place[token].decoded_token or "",
        logprob=float(place[token].logprob),
        top=tuple((entry.decoded_token or "", float(entry.logprob)) for entry in ranked[:likeliest]),
    )
