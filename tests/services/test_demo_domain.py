from __future__ import annotations

import random

import pytest

from services.demo.domain import (
    EVASIONS,
    POLITE_CLOSINGS,
    POLITE_OPENINGS,
    RAMBLINGS,
    RUDE_CLOSINGS,
    RUDE_OPENINGS,
    TOPICS,
    UNSEEN_TOPIC,
    Topic,
    draw_answer,
    prompt_sets,
    read_question,
    split_words,
    topic_prompts,
)


def texts(prompts: tuple) -> set[str]:
    return {prompt.messages[-1].text for prompt in prompts}


def test_prompt_sets_are_large_and_disjoint() -> None:
    sets = prompt_sets(0)
    parts = [sets.train, sets.evaluation, sets.unseen, sets.unseen_building]
    assert len(sets.train) >= 5000 and len(sets.evaluation) >= 256 and len(sets.unseen) >= 256
    assert sum(len(texts(part)) for part in parts) == len(set().union(*map(texts, parts)))
    ids = [prompt.id for part in parts for prompt in part]
    assert len(ids) == len(set(ids))


def test_self_play_never_sees_the_unseen_topic() -> None:
    sets = prompt_sets(0)
    assert UNSEEN_TOPIC not in {prompt.domain for prompt in (*sets.train, *sets.evaluation)}
    assert {prompt.domain for prompt in (*sets.unseen, *sets.unseen_building)} == {UNSEEN_TOPIC}


def test_prompt_sets_follow_from_the_seed() -> None:
    assert prompt_sets(3) == prompt_sets(3)
    assert prompt_sets(3).train != prompt_sets(4).train


def test_every_prompt_reads_back_as_one_fact_of_its_topic() -> None:
    for topic in TOPICS:
        found = [read_question(prompt.messages[-1].text) for prompt in topic_prompts(topic)]
        assert all(fact is not None and fact.topic is topic for fact in found)
        assert {fact.key for fact in found if fact} == set(topic.facts)


@pytest.mark.parametrize("text", ["", "Where is Monday?", "Do you open?", "Do you open on Monday or Friday?"])
def test_other_texts_ask_for_no_fact(text: str) -> None:
    assert read_question(text) is None


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_no_phrase_names_a_value_or_key_by_accident(topic: Topic) -> None:
    named = {word.lower() for word in (*topic.values, *topic.facts)}
    for phrase in (
        *POLITE_OPENINGS,
        *RUDE_OPENINGS,
        *POLITE_CLOSINGS,
        *RUDE_CLOSINGS,
        *RAMBLINGS,
        *EVASIONS,
        *(statement.replace("{key}", "").replace("{value}", "") for statement in topic.statements),
    ):
        assert not named & set(split_words(phrase)), phrase


def test_drawn_answers_are_mixed() -> None:
    fact = read_question("When do you open on Friday?")
    assert fact is not None
    rng = random.Random(0)
    answers = [draw_answer(fact, rng).text for _ in range(500)]
    right = sum("noon" in answer for answer in answers) / 500
    rude = sum(any(phrase in answer for phrase in (*RUDE_OPENINGS, *RUDE_CLOSINGS)) for answer in answers) / 500
    assert 0.4 < right < 0.6 and 0.3 < rude < 0.5 and len(set(answers)) > 150
