"""From prompts and answers to the plain text that a scorer reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from learner.records import Message, Prompt

_CONVERSATION = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
"""PairRM's own words, misspelling included: its weights have seen them like this (llm-blender, ``tokenize_conv_pair``)."""

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)\s*", re.DOTALL)


def strip_thinking(text: str) -> str:
    """Leave out ``<think>...</think>``. A thinking part that was cut off, or whose start is in the prompt, goes too."""
    head, mark, tail = text.partition("</think>")
    if mark and "<think>" not in head:
        text = tail.lstrip()
    return _THINKING.sub("", text)


def replace_literals(text: str, literals: Iterable[str]) -> str:
    """Replace each of the tokenizer's special strings by a space, so that a text cannot pretend to be structure."""
    for literal in literals:
        text = text.replace(literal, " ")
    return text


def render_pairrm(prompt: Prompt, answers: Iterable[str]) -> tuple[str, list[str]]:
    """The source and the candidates as PairRM reads them.

    A single user turn is given as it is, raw and without a chat template. Several turns become PairRM's conversation form: the
    user's turns with numbered places for the replies make the source, and each candidate lists the earlier replies and then the
    answer. PairRM knows no system prompt; its text goes before the rest, on a line of its own.
    """
    system = "\n".join(message.text for message in prompt.messages if message.role == "system")
    turns = _exchanges([message for message in prompt.messages if message.role != "system"])
    if len(turns) == 1:
        source, candidates = turns[0][0], list(answers)
    else:
        asked = "\n".join(f"USER: {user}\nAssistant: <Response {n}>" for n, (user, _) in enumerate(turns, start=1))
        replies = [f"<Response {n}>: {reply}" for n, (_, reply) in enumerate(turns[:-1], start=1)]
        source = _CONVERSATION + asked
        candidates = ["\n".join([*replies, f"<Response {len(turns)}>: {answer}"]) for answer in answers]
    return (f"{system}\n{source}" if system else source), candidates


def _exchanges(messages: list[Message]) -> list[tuple[str, str]]:
    """(user's text, assistant's text) by exchange; neighbouring turns of one role are joined, the last reply is empty."""
    exchanges: list[tuple[str, str]] = []
    previous = "assistant"
    for message in messages:
        if not exchanges or (message.role == "user" and previous == "assistant"):
            exchanges.append(("", ""))
        user, assistant = exchanges[-1]
        if message.role == "user":
            exchanges[-1] = (f"{user}\n{message.text}" if user else message.text, assistant)
        else:
            exchanges[-1] = (user, f"{assistant}\n{message.text}" if assistant else message.text)
        previous = message.role
    return exchanges
