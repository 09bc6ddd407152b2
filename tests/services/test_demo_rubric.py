from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.records import Message, Prompt
from services.demo.domain import EVASIONS, POLITE_CLOSINGS, POLITE_OPENINGS, RAMBLINGS, RUDE_CLOSINGS, TOPICS
from services.demo.rubric import mark, reward

QUESTION = "Hello, Anna here. When do you open on Saturday?"
PLAIN = "We open at noon on Saturday."
BEST = f"Good day! {PLAIN} Kind regards."


def total(answer: str) -> float:
    return mark(QUESTION, answer).total


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (BEST, PLAIN),
        (PLAIN, f"{PLAIN} {RAMBLINGS[0]}"),
        (PLAIN, f"{PLAIN} {RUDE_CLOSINGS[0]}"),
        (PLAIN, "We open at nine on Saturday."),
        (PLAIN, "We open at midnight on Saturday."),
        (PLAIN, "We do not open at noon on Saturday."),
        (PLAIN, "We open at noon or at nine on Saturday."),
        (PLAIN, "We open at noon on Sunday, no, on Monday."),
        (PLAIN, "We open at noon on Monday."),
        (PLAIN, EVASIONS[0]),
        (EVASIONS[0], "We open at nine on Saturday."),
        (f"{POLITE_OPENINGS[0]} {PLAIN}", PLAIN),
        (BEST, f"{POLITE_OPENINGS[0]} {POLITE_OPENINGS[1]} {PLAIN} {' '.join(POLITE_CLOSINGS)}"),
        (BEST, f"{BEST} {BEST}"),
        (PLAIN, "noon"),
        (PLAIN, "Saturday noon Saturday noon."),
        (PLAIN, "We open at noon on Saturday"),
        (PLAIN, "We opne at noon on Saturday."),
        (PLAIN, " ".join(f"{value}." for value in TOPICS[0].values)),
        (EVASIONS[0], ""),
    ],
)
def test_the_better_answer_gets_more_points(better: str, worse: str) -> None:
    assert total(better) > total(worse)


def test_every_right_statement_counts_as_correct_and_every_wrong_one_as_wrong() -> None:
    for topic in TOPICS:
        for key, right in topic.facts.items():
            question = topic.questions[0].format(key=key)
            for statement in topic.statements:
                for value in topic.values:
                    points = mark(question, statement.format(key=key, value=value)).correct
                    assert points == (5.0 if value == right else 0.0)


@given(st.text(max_size=400))
def test_any_text_gets_finite_points_in_the_range_and_none_beats_the_best(answer: str) -> None:
    points = total(answer)
    assert -13 <= points <= 10
    assert points < total(BEST)


@given(
    st.lists(
        st.sampled_from([*TOPICS[0].values, *POLITE_OPENINGS, *POLITE_CLOSINGS, PLAIN, "please", "Saturday", "."]),
        max_size=30,
    )
)
def test_stuffing_good_words_does_not_reach_a_written_answer(words: list[str]) -> None:
    assert total(" ".join(words)) <= total(BEST)


def test_what_is_no_question_of_the_desk_is_marked_on_style_alone() -> None:
    assert mark("Tell me a joke.", PLAIN).correct == 0.0


def test_the_entry_point_reads_the_last_turn_and_keeps_the_order() -> None:
    prompt = Prompt(
        id="p",
        messages=(
            Message.of("user", "When do you open on Monday?"),
            Message.of("assistant", "At nine."),
            Message.of("user", QUESTION),
        ),
    )
    assert reward(prompt, [PLAIN, BEST, ""]) == [total(PLAIN), total(BEST), total("")]
    assert reward(prompt, []) == []


def test_the_rubric_imports_no_torch() -> None:
    code = (
        "import sys, services.demo.rubric; sys.exit(bool({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
