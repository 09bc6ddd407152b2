"""What benchmarks of the learner alone share: the demo's policy and topics, self-play without a sampler, and win rates.

Answers are the policy's own, each seen once, and compared by their domain's taste. Win rates are of fresh answers against the start policy's,
judged by the taste itself, ties one half.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.records import Answer, AnswerSource, FinishReason, Prompt, ScoredGroup, ScorerIdentity
from learner.seeds import derive_seed
from learner.trainer import Trainer
from services.demo.domain import UNSEEN_TOPIC, prompt_sets, split_words
from services.demo.policy import render
from services.demo.rubric import mark
from services.demo.world import DemoWorld

PROMPTS_PER_STEP = 16
ANSWERS = 3
MAX_TOKENS = 48
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for a two-sided 95 % interval, by number of seeds."""

Taste = Callable[[str, str], float]


def _common(question: str, answer: str) -> float:
    marks = mark(question, answer)
    return marks.correct + marks.well_written


def courteous(question: str, answer: str) -> float:
    """Right, and polite."""
    return _common(question, answer) + mark(question, answer).polite


def brief(question: str, answer: str) -> float:
    """Right, in few words."""
    return _common(question, answer) - 0.5 * len(split_words(answer))


def ample(question: str, answer: str) -> float:
    """Right, in many words."""
    return _common(question, answer) + 0.5 * min(len(split_words(answer)), 24)


TASTES: dict[str, Taste] = {"courteous": courteous, "brief": brief, "ample": ample}


@functools.cache  # drawn in seconds, and asked for by every step
def _by_topic(world_seed: int, held_out: bool) -> list[list[Prompt]]:
    """The demo's prompts by topic, in the order of the topics' names."""
    sets = prompt_sets(world_seed)
    topics: dict[str, list[Prompt]] = {}
    for prompt in sets.evaluation if held_out else sets.train:
        topics.setdefault(str(prompt.domain), []).append(prompt)
    return [topics[topic] for topic in sorted(topics) if topic != UNSEEN_TOPIC]


@dataclass(frozen=True)
class Bench:
    """What all arms share: the policy, and each domain's prompts. ``name`` is the benchmark's, of which its draws are made."""

    world: DemoWorld
    name: str
    seed: int
    steps: int
    held_out: int

    def model(self) -> Any:
        """A fresh copy of the start policy."""
        return copy.deepcopy(AutoModelForCausalLM.from_pretrained(self.world.policy, dtype=torch.float32).eval())

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return AutoTokenizer.from_pretrained(self.world.policy)

    def prompts(self, domain: str, *, held_out: bool) -> list[Prompt]:
        """A domain is a topic of its own, with its taste."""
        found = _by_topic(self.world.seed, held_out)[list(TASTES).index(domain)]
        return found[: self.held_out] if held_out else found

    def play(self, trainer: Trainer, domains: Sequence[str], step: int) -> list[ScoredGroup]:
        """An optimizer batch: prompts of the domains, the same for all arms, each answered ANSWERS times by the fast adapter as it is."""
        rng = random.Random(derive_seed(self.name, self.seed, *domains, step))
        asked = [rng.choice(domains) for _ in range(PROMPTS_PER_STEP)]
        prompts = [rng.choice(self.prompts(domain, held_out=False)) for domain in asked]
        repeated = [prompt for prompt in prompts for _ in range(ANSWERS)]
        written = self._write(trainer, repeated, rng.getrandbits(32))
        groups = []
        for place, (domain, prompt) in enumerate(zip(asked, prompts, strict=True)):
            answers = written[place * ANSWERS : (place + 1) * ANSWERS]
            groups.append(self._group(f"{'-'.join(domains)}/{step}/{place}", domain, prompt, answers))
        return groups

    def answers(self, trainer: Trainer, domain: str) -> list[str]:
        """One fresh answer of the fast adapter to each held-out prompt, at temperature 1; the draws are the same for all arms."""
        seed = derive_seed(self.name, self.seed, domain, "answers")
        return [self._text(ids) for ids in self._write(trainer, self.prompts(domain, held_out=True), seed)]

    def win_rate(self, domain: str, answers: Sequence[str], start: Sequence[str]) -> float:
        """Of answers against the start policy's, by the domain's taste; ties one half."""
        questions = [prompt.messages[-1].text for prompt in self.prompts(domain, held_out=True)]
        taste = TASTES[domain]
        wins = [
            (taste(q, a) > taste(q, b)) + 0.5 * (taste(q, a) == taste(q, b))
            for q, a, b in zip(questions, answers, start, strict=True)
        ]
        return statistics.fmean(wins)

    def _write(self, trainer: Trainer, prompts: Sequence[Prompt], seed: int) -> list[list[int]]:
        """One answer's tokens to each prompt, the end-of-sequence token last where there is one."""
        tokenizer = self.tokenizer
        asked = render(tokenizer, [prompt.messages[-1].text for prompt in prompts])
        inputs = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
        torch.manual_seed(seed)
        with trainer.policy.evaluating():
            written = trainer.policy.model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_TOKENS
            )
        rows: list[list[int]] = written[:, inputs["input_ids"].shape[1] :].tolist()
        end = tokenizer.eos_token_id
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _group(self, name: str, domain: str, prompt: Prompt, answers: Sequence[Sequence[int]]) -> ScoredGroup:
        """Answers compared by the difference of their marks."""
        question = prompt.messages[-1].text
        texts = [self._text(ids) for ids in answers]
        marks = [TASTES[domain](question, text) for text in texts]
        return ScoredGroup(
            group_id=name,
            round=0,
            index=0,
            version=0,
            prompt=prompt,
            prompt_token_ids=tuple(render(self.tokenizer, [question])[0]),
            answers=tuple(
                Answer(
                    text=text,
                    token_ids=tuple(ids),
                    finish_reason=FinishReason.GIVEN,
                    source=AnswerSource.FILE,
                )
                for text, ids in zip(texts, answers, strict=True)
            ),
            scorer=ScorerIdentity(kind="function", name="taste", version="1"),
            ordered_logits=tuple(tuple(first - second for second in marks) for first in marks),
        )


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t-interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"
