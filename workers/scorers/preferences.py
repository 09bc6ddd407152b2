"""Reading preference pairs: what a scorer is trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from learner.errors import InputError
from learner.records import Message, Prompt


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt. ``preference_b`` is the probability that b is better, in [0, 1]."""

    prompt: Prompt
    response_a: str
    response_b: str
    preference_b: float


def read_preferences(path: Path) -> list[PreferencePair]:
    """Read JSON Lines of ``{prompt, response_a, response_b, preference_b}`` or ``{prompt, chosen, rejected}``.

    A prompt is text or a list of chat messages; ``chosen`` and ``rejected`` are text or a list of one assistant message. Other
    fields are left alone, empty lines skipped.

    Raises:
        InputError: the file is missing or empty, or a line is bad; the line is named by its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a file of JSON Lines in UTF-8") from error
    pairs = [_pair(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not pairs:
        raise InputError(f"{path}: holds no preference pairs")
    return pairs


def split_by_prompt(
    pairs: Sequence[PreferencePair], held_out: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Split into training and held-out pairs, so that no prompt is in both.

    Args:
        pairs: all pairs, in order.
        held_out: share of pairs to hold out; prompts are taken until it is reached.
        seed: of the shuffle of prompts.

    Raises:
        InputError: one side would be empty.
    """
    by_prompt: dict[tuple[Message, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        by_prompt.setdefault(pair.prompt.messages, []).append(index)
    groups = list(by_prompt.values())
    random.Random(seed).shuffle(groups)
    wanted = held_out * len(pairs)
    kept: set[int] = set()
    for group in groups:
        if len(kept) >= wanted:
            break
        kept.update(group)
    if not kept or len(kept) == len(pairs):
        raise InputError(
            f"held_out: {held_out} of {len(pairs)} pairs on {len(groups)} prompts leaves nothing to train on or nothing to test on; "
            "give more prompts"
        )
    return (
        [pair for index, pair in enumerate(pairs) if index not in kept],
        [pair for index, pair in enumerate(pairs) if index in kept],
    )


def _pair(line: str, place: str) -> PreferencePair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: must be a JSON object, not {type(row).__name__}")
    if "prompt" not in row:
        raise InputError(f"{place}: 'prompt' is missing")
    prompt = _prompt(row["prompt"], place)
    if "chosen" in row and "rejected" in row:
        return PreferencePair(prompt, _answer(row, "chosen", place), _answer(row, "rejected", place), 0.0)
    if not {"response_a", "response_b", "preference_b"} <= row.keys():
        raise InputError(f"{place}: needs 'response_a', 'response_b' and 'preference_b', or 'chosen' and 'rejected'")
    preference = row["preference_b"]
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not 0 <= preference <= 1:
        raise InputError(
            f"{place}: 'preference_b' is {preference!r}; it must be a number from 0 (a is better) to 1 (b is better)"
        )
    return PreferencePair(
        prompt, _answer(row, "response_a", place), _answer(row, "response_b", place), float(preference)
    )


def _prompt(value: Any, place: str) -> Prompt:
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{place}: 'prompt' is empty")
        return Prompt.of(place, value)
    if isinstance(value, list) and value:
        try:
            return Prompt(id=place, messages=tuple(_message(turn) for turn in value))
        except (ValidationError, KeyError, TypeError) as error:
            reason = (
                error.errors()[0]["msg"]
                if isinstance(error, ValidationError)
                else f"needs 'role' and 'content' ({error})"
            )
            raise InputError(f"{place}: 'prompt' is not a chat that ends with a user turn: {reason}") from None
    raise InputError(f"{place}: 'prompt' must be text or a list of chat messages, not {value!r}")


def _message(turn: Any) -> Message:
    content = turn["content"]
    if not isinstance(content, str):
        raise TypeError("content must be text")
    return Message.of(turn["role"], content)


def _answer(row: dict[str, Any], field: str, place: str) -> str:
    value = row[field]
    if (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], dict)
        and value[0].get("role") == "assistant"
    ):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(f"{place}: {field!r} must be text, or a list of one assistant message, not {value!r:.80}")
    return value
