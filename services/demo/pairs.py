"""The pairs that the demo's PairRM is trained on, labelled by the rubric."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from learner.records import Prompt
from services.demo.domain import draw_answer, draw_statement, read_question
from services.demo.rubric import reward
from workers.scorers.preferences import PreferencePair


def template_pairs(prompts: Iterable[Prompt], rng: random.Random) -> list[PreferencePair]:
    """One pair of drawn answers a prompt. In half of them the answers differ in nothing but what they say, so that facts get learned."""
    pairs = []
    for prompt in prompts:
        fact = read_question(prompt.messages[-1].text)
        assert fact is not None
        first = draw_answer(fact, rng)
        second = replace(first, statement=draw_statement(fact, rng)) if rng.random() < 0.5 else draw_answer(fact, rng)
        pairs += label(prompt, [first.text, second.text])
    return pairs


def sampled_pairs(prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[PreferencePair]:
    """All pairs among each prompt's answers."""
    return [pair for prompt, texts in zip(prompts, answers, strict=True) for pair in label(prompt, texts)]


def label(prompt: Prompt, answers: Sequence[str]) -> list[PreferencePair]:
    """Every pair of answers that the rubric marks differently; ties teach nothing."""
    marks = reward(prompt, answers)
    return [
        PreferencePair(prompt, answers[a], answers[b], float(marks[b] > marks[a]))
        for a, b in combinations(range(len(answers)), 2)
        if marks[a] != marks[b]
    ]
