"""The demo's written rubric: correct, polite, concise. It is the gold judge beside PairRM, and it labels PairRM's training pairs.

In words, for one answer to one question of the help desk:

* **Correct, 0 to 5 points.** 5 when a sentence states the fact in one of the desk's wordings ("We open at noon on Saturday"), without
  "not", "never" or "no", and the answer names no other value of the same fact sheet and no other key than the one that was asked for.
  0 when anything wrong is named, the right value beside it included, so that listing all values does not help. 1 otherwise.
* **Polite, -6 to 3 points.** 2 for one courtesy, 3 for two different ones, no more for further ones. 3 off for each rude remark, at most two.
* **Concise, -3 to 2 points.** 2 up to twelve words, a quarter less for each further word. Fewer than four words are no sentence: 0.
* **Well written, -4 to 0 points.** Off: 0.5 for each word that the desk does not know, 0.5 for each run of three words that came
  before, 0.5 for not ending like a sentence.

The best answer greets, states the fact in one sentence and closes politely: about 10 points. On prompts that are not the desk's
questions nothing can be correct, and the other three decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from learner.records import Prompt
from services.demo.domain import (
    POLITE_CLOSINGS,
    POLITE_OPENINGS,
    RUDE_CLOSINGS,
    RUDE_OPENINGS,
    Fact,
    read_question,
    split_words,
    word_list,
)

NEGATIONS = frozenset(("not", "never", "no", "don't", "isn't"))
COURTESIES = tuple(tuple(split_words(text)) for text in (*POLITE_OPENINGS, *POLITE_CLOSINGS))
RUDENESSES = tuple(tuple(split_words(text)) for text in (*RUDE_OPENINGS, *RUDE_CLOSINGS))
WORDS = word_list()


@dataclass(frozen=True)
class Marks:
    """Points of one answer, by criterion."""

    correct: float
    polite: float
    concise: float
    well_written: float

    @property
    def total(self) -> float:
        """The answer's reward."""
        return round(self.correct + self.polite + self.concise + self.well_written, 6)


def reward(prompt: Prompt, answers: Sequence[str]) -> list[float]:
    """The rubric's points of each answer, -13 to 10; more is better. Reads nothing but the prompt's last turn and the answers."""
    question = prompt.messages[-1].text
    return [mark(question, answer).total for answer in answers]


def mark(question: str, answer: str) -> Marks:
    """Mark one answer to the text of a question."""
    words = split_words(answer)
    return Marks(
        correct=_correct(read_question(question), answer),
        polite=_polite(words),
        concise=max(2.0 - 0.25 * max(len(words) - 12, 0), -3.0) if len(words) >= 4 else 0.0,
        well_written=_well_written(words, answer),
    )


def _correct(fact: Fact | None, answer: str) -> float:
    if fact is None:
        return 0.0
    named = set(split_words(answer))
    right = {fact.value.lower(), fact.key.lower()}
    if named & {word.lower() for word in (*fact.topic.values, *fact.topic.facts)} - right:
        return 0.0
    wordings = [tuple(split_words(text.format(key=fact.key, value=fact.value))) for text in fact.topic.statements]
    for sentence in re.split(r"[.!?\n]", answer):
        words = split_words(sentence)
        if not NEGATIONS.intersection(words) and any(_contains(words, wording) for wording in wordings):
            return 5.0
    return 1.0


def _polite(words: list[str]) -> float:
    courtesies = sum(_contains(words, phrase) for phrase in COURTESIES)
    rudenesses = sum(_contains(words, phrase) for phrase in RUDENESSES)
    return (0.0, 2.0, 3.0)[min(courtesies, 2)] - 3.0 * min(rudenesses, 2)


def _well_written(words: list[str], answer: str) -> float:
    unknown = sum(word not in WORDS for word in words)
    runs = list(zip(words, words[1:], words[2:], strict=False))
    repeated = len(runs) - len(set(runs))
    unfinished = not answer.rstrip().endswith((".", "!", "?"))
    return -0.5 * min(unknown + repeated + unfinished, 8)


def _contains(words: list[str], phrase: tuple[str, ...]) -> bool:
    return f" {' '.join(phrase)} " in f" {' '.join(words)} "
