"""The demo's help desk: topics with their fact sheets, the questions that people ask, and answers of mixed quality.

A question names a topic and a key ("Saturday"); the topic's fact sheet says which value is right ("noon"). So the right answer to
every prompt is known from its text alone, which is what the rubric checks. Everything is drawn from seeds that are derived from names.

One topic, ``UNSEEN_TOPIC``, is held out of self-play: its questions never stand among the training prompts. The policy's
pre-training and the scorer's training do contain it, with prompts of its own, so that the policy can answer it and the scorer can judge it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

from learner.records import Prompt
from learner.seeds import derive_seed


@dataclass(frozen=True)
class Topic:
    """One subject of the help desk.

    ``cue`` is a word that every question of the topic, and no question of another, contains. ``facts`` maps keys to right values,
    ``mistakes`` are values that are right for no key. ``questions`` hold ``{key}``, ``statements`` hold ``{key}`` and ``{value}``.
    """

    name: str
    cue: str
    facts: MappingProxyType[str, str]
    mistakes: tuple[str, ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """Every value that an answer may name, the right ones first."""
        return (*dict.fromkeys(self.facts.values()), *self.mistakes)


class Fact(NamedTuple):
    """What a question asks for: ``topic.facts[key]`` is the right value."""

    topic: Topic
    key: str

    @property
    def value(self) -> str:
        """The right answer, one word."""
        return self.topic.facts[self.key]


def _topic(
    name: str,
    cue: str,
    facts: dict[str, str],
    mistakes: tuple[str, ...],
    questions: tuple[str, ...],
    statements: tuple[str, ...],
) -> Topic:
    return Topic(name, cue, MappingProxyType(facts), mistakes, questions, statements)


UNSEEN_TOPIC = "parking"

TOPICS: tuple[Topic, ...] = (
    _topic(
        "opening hours",
        "open",
        {
            "Monday": "nine",
            "Tuesday": "nine",
            "Wednesday": "eight",
            "Thursday": "eight",
            "Friday": "noon",
            "Saturday": "noon",
        },
        ("midnight", "dawn", "sunset"),
        (
            "When do you open on {key}?",
            "At what time does the shop open on {key}?",
            "On {key}, when do you open?",
            "Can you tell me when you open on {key}?",
        ),
        ("We open at {value} on {key}.", "On {key} we open at {value}."),
    ),
    _topic(
        "delivery",
        "parcel",
        {"Spain": "train", "Italy": "train", "France": "van", "Poland": "van", "Norway": "ship", "Ireland": "ship"},
        ("balloon", "rocket", "camel"),
        (
            "How does my parcel go to {key}?",
            "My parcel is for {key}, how is it sent?",
            "How do you send a parcel to {key}?",
            "Can you tell me how a parcel gets to {key}?",
        ),
        ("A parcel to {key} goes by {value}.", "We send a parcel to {key} by {value}."),
    ),
    _topic(
        "passwords",
        "password",
        {"shop": "menu", "forum": "menu", "mail": "app", "wallet": "app", "phone": "settings", "printer": "settings"},
        ("kitchen", "cellar", "attic"),
        (
            "Where do I reset the {key} password?",
            "I lost my {key} password, where can I reset it?",
            "My {key} password is wrong, where do I get a new one?",
            "Can you tell me where to reset a {key} password?",
        ),
        ("You can reset the {key} password in the {value}.", "Use the {value} to reset the {key} password."),
    ),
    _topic(
        "refunds",
        "refund",
        {"shoes": "cash", "coats": "cash", "books": "card", "games": "card", "lamps": "voucher", "toys": "voucher"},
        ("coffee", "feathers", "magic"),
        (
            "How do I get a refund for {key}?",
            "Do I get a refund for {key}, and how?",
            "I want a refund for my {key}, how is it paid?",
            "Can you tell me how a refund for {key} is paid?",
        ),
        ("A refund for {key} is paid by {value}.", "For {key} you get the refund by {value}."),
    ),
    _topic(
        "invoices",
        "invoice",
        {"hotel": "Brown", "bank": "Brown", "office": "Green", "school": "Green", "garden": "Miller", "farm": "Miller"},
        ("Santa", "Dracula", "nobody"),
        (
            "Who sends the {key} invoice?",
            "I need the {key} invoice, who has it?",
            "My {key} invoice is missing, who can send it?",
            "Can you tell me who has the {key} invoice?",
        ),
        ("Ask {value} for the {key} invoice.", "The {key} invoice comes from {value}."),
    ),
    _topic(
        "appointments",
        "appointment",
        {"doctor": "two", "nurse": "two", "lawyer": "three", "trainer": "three", "manager": "four", "tailor": "four"},
        ("zero", "ninety", "million"),
        (
            "Which room is my {key} appointment in?",
            "I have a {key} appointment, which room is it?",
            "Where is the {key} appointment?",
            "Can you tell me the room of my {key} appointment?",
        ),
        ("The {key} appointment is in room {value}.", "Go to room {value} for the {key} appointment."),
    ),
    _topic(
        "warranty",
        "warranty",
        {"kettle": "two", "heater": "two", "fridge": "five", "camera": "five", "oven": "six", "radio": "six"},
        ("zero", "ninety", "thousand"),
        (
            "How many years of warranty has the {key}?",
            "My {key} broke, how long is the warranty?",
            "How long is the warranty of a {key}?",
            "Can you tell me the warranty of the {key}?",
        ),
        ("The warranty of the {key} is {value} years.", "For the {key} you have {value} years of warranty."),
    ),
    _topic(
        UNSEEN_TOPIC,
        "park",
        {"vans": "red", "trucks": "red", "bikes": "blue", "guests": "blue", "buses": "white", "families": "white"},
        ("lava", "secret", "invisible"),
        (
            "Where do {key} park?",
            "On which level can {key} park?",
            "Which level is for {key} to park on?",
            "Can you tell me where {key} park?",
        ),
        ("The {value} level is for {key}.", "There is room for {key} on the {value} level."),
    ),
)

WORD = re.compile(r"(?:[^\W_]|')+")
"""What ``split_words`` takes for a word."""

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo")
HELLOS = ("", "Hi, ", "Hello, ", "Good morning, ")

POLITE_OPENINGS = ("Thank you for asking!", "Good day!", "Glad to help!")
RUDE_OPENINGS = ("Not again.", "What a silly question.", "Ugh.")
POLITE_CLOSINGS = ("Have a nice day!", "Kind regards.", "You are welcome!")
RUDE_CLOSINGS = ("Now go away.", "Read the sign next time.")
RAMBLINGS = (
    "By the way, the weather is so bad today.",
    "So many people write us long letters about that.",
)
EVASIONS = ("I do not know that.", "Maybe somebody else can tell you.")


def word_list() -> frozenset[str]:
    """Every word, in lower case, that the desk's questions and answers are made of."""
    texts: list[str] = [
        *NAMES, *HELLOS, "here", *POLITE_OPENINGS, *RUDE_OPENINGS, *POLITE_CLOSINGS, *RUDE_CLOSINGS, *RAMBLINGS, *EVASIONS
    ]  # fmt: skip
    for topic in TOPICS:
        texts += [*topic.facts, *topic.values, *topic.questions, *topic.statements]
    joined = " ".join(texts).replace("{key}", " ").replace("{value}", " ")
    return frozenset(split_words(joined))


def split_words(text: str) -> list[str]:
    """The words of a text in lower case; whatever is neither a letter, a digit nor an apostrophe separates them."""
    return WORD.findall(text.lower())


def read_question(text: str) -> Fact | None:
    """What a prompt's text asks for, or None where it is not one of the desk's questions."""
    words = set(split_words(text))
    for topic in TOPICS:
        if topic.cue in words:
            keys = [key for key in topic.facts if key.lower() in words]
            return Fact(topic, keys[0]) if len(keys) == 1 else None
    return None


def topic_prompts(topic: Topic) -> list[Prompt]:
    """All prompts of a topic, in a fixed order; ids are unique over all topics, ``domain`` is the topic's name."""
    combinations = product(topic.facts, topic.questions, NAMES, HELLOS)
    slug = topic.name.replace(" ", "-")
    return [
        Prompt.of(f"{slug}-{number:04d}", f"{hello}{name} here. {question.format(key=key)}", topic.name)
        for number, (key, question, name, hello) in enumerate(combinations)
    ]


@dataclass(frozen=True)
class PromptSets:
    """Disjoint sets of prompts. ``train`` and ``evaluation`` hold every topic but the unseen one, in equal shares.

    ``unseen`` is held out like ``evaluation``; ``unseen_building`` is what the policy's pre-training and the scorer's training
    may use of the unseen topic.
    """

    train: tuple[Prompt, ...]
    evaluation: tuple[Prompt, ...]
    unseen: tuple[Prompt, ...]
    unseen_building: tuple[Prompt, ...]


EVALUATION_PROMPTS_PER_TOPIC = 80
UNSEEN_EVALUATION_PROMPTS = 480


def prompt_sets(seed: int) -> PromptSets:
    """Split all prompts by ``seed``."""
    train: list[Prompt] = []
    evaluation: list[Prompt] = []
    unseen: list[Prompt] = []
    unseen_building: list[Prompt] = []
    for topic in TOPICS:
        prompts = topic_prompts(topic)
        random.Random(derive_seed("demo", seed, "split", topic.name)).shuffle(prompts)
        if topic.name == UNSEEN_TOPIC:
            unseen, unseen_building = prompts[:UNSEEN_EVALUATION_PROMPTS], prompts[UNSEEN_EVALUATION_PROMPTS:]
        else:
            evaluation += prompts[:EVALUATION_PROMPTS_PER_TOPIC]
            train += prompts[EVALUATION_PROMPTS_PER_TOPIC:]
    random.Random(derive_seed("demo", seed, "train")).shuffle(train)
    random.Random(derive_seed("demo", seed, "evaluation")).shuffle(evaluation)
    return PromptSets(tuple(train), tuple(evaluation), tuple(unseen), tuple(unseen_building))


@dataclass(frozen=True)
class AnswerParts:
    """An answer before it is written out: an opening and a closing, either may be empty, and what it says in between."""

    opening: str
    statement: str
    closing: str

    @property
    def text(self) -> str:
        """The answer."""
        return " ".join(part for part in (self.opening, self.statement, self.closing) if part)


def draw_answer(fact: Fact, rng: random.Random) -> AnswerParts:
    """An answer of mixed quality: right, wrong or evasive; polite, plain or rude; short or rambling; each drawn apart."""
    opening = _one_of(rng, ((0.30, POLITE_OPENINGS), (0.40, ("",)), (0.30, RUDE_OPENINGS)))
    closing = _one_of(rng, ((0.25, POLITE_CLOSINGS), (0.35, ("",)), (0.15, RUDE_CLOSINGS), (0.25, RAMBLINGS)))
    return AnswerParts(opening, draw_statement(fact, rng), closing)


def draw_statement(fact: Fact, rng: random.Random) -> str:
    """What an answer says: right half of the time, else a value that is right for no key or for another one, now and then nothing."""
    content = rng.choices(("right", "mistake", "confused", "evasive"), (0.48, 0.38, 0.06, 0.08))[0]
    if content == "evasive":
        return rng.choice(EVASIONS)
    values = {
        "right": (fact.value,),
        "mistake": fact.topic.mistakes,
        "confused": tuple(value for value in dict.fromkeys(fact.topic.facts.values()) if value != fact.value),
    }[content]
    return rng.choice(fact.topic.statements).format(key=fact.key, value=rng.choice(values))


def _one_of(rng: random.Random, weighted: Sequence[tuple[float, tuple[str, ...]]]) -> str:
    """A text of one of the kinds, the kind by its weight and the text evenly."""
    (kind,) = rng.choices([texts for _, texts in weighted], [weight for weight, _ in weighted])
    return rng.choice(kind)
