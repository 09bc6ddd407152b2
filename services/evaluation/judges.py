"""Who says which of two answers is better: a scorer as jobs use them, or a chat model behind an OpenAI-compatible URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from learner.errors import InputError
from learner.evaluation import preferences_of
from learner.records import ScorerIdentity
from services.evaluation.sides import find_job
from services.jobs.scorer_checks import problems
from services.jobs.spec import JobSpec
from workers.config import AnyScorer, FunctionScorer, PairRMScorer, RewardModelScorer, ScorerConfig
from workers.scorers.base import Comparison, PreferenceScorer
from workers.scorers.build import build_scorer
from workers.scorers.function import find_function
from workers.scorers.judging import order_averaged_logits

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""

AT_A_TIME = 32
"""Comparisons that a scorer gets in one call, so that progress shows."""

FORMS = "scorer:JOB, gold:JOB, pairrm:MODEL, reward-model:MODEL or function:NAME"


@dataclass(frozen=True)
class Verdicts:
    """What a judge said.

    Attributes:
        preferences: of each comparison the probability that its first answer is the better one; None where the judge did not say.
        notes: counts that belong beside it, under stable names.
    """

    preferences: tuple[float | None, ...]
    notes: dict[str, int] = field(default_factory=dict)


class Judge(Protocol):
    """Compares two answers to each prompt."""

    @property
    def identity(self) -> ScorerIdentity:
        """Who judges."""
        ...

    def judge(self, comparisons: Sequence[Comparison], progress: Progress) -> Verdicts:
        """A verdict on each comparison, without position bias."""
        ...


@dataclass(frozen=True)
class ScorerJudge:
    """A preference scorer as a judge: both orders, averaged, at its temperature."""

    scorer: PreferenceScorer
    temperature: float

    @property
    def identity(self) -> ScorerIdentity:
        """The scorer's."""
        return self.scorer.identity

    def judge(self, comparisons: Sequence[Comparison], progress: Progress) -> Verdicts:
        """See `Judge`.

        Raises:
            InputError: a logit is not a number.
        """
        logits: list[float] = []
        for start in range(0, len(comparisons), AT_A_TIME):
            logits += order_averaged_logits(self.scorer, comparisons[start : start + AT_A_TIME])
            progress("judging", len(logits), len(comparisons))
        return Verdicts(tuple(preferences_of(logits, self.temperature).tolist()))


def find_scorer(name: str) -> ScorerConfig:
    """The scorer that ``--judge`` means, checked but not loaded.

    Raises:
        InputError: it is not one of `FORMS`, or there is no such job, model or function.
    """
    kind, colon, rest = name.partition(":")
    if not colon or not rest:
        raise InputError(
            f"--judge: {name!r} is none of {FORMS}; write one of them, or give --judge-url and --judge-model"
        )
    if kind == "scorer":
        return JobSpec.model_validate(find_job(rest).spec).scorer
    if kind == "gold":
        gold = JobSpec.model_validate(find_job(rest).spec).evaluation.gold
        if gold is None:
            raise InputError(f"--judge: {rest} has no gold judge (evaluation.gold); name another judge: {FORMS}")
        return ScorerConfig(model=_checked(FunctionScorer(name=gold)))
    folder = Path(rest).expanduser()
    model = str(folder.resolve()) if folder.is_dir() else rest
    kinds: dict[str, Callable[[], AnyScorer]] = {
        "pairrm": lambda: PairRMScorer(model=model),
        "reward-model": lambda: RewardModelScorer(model=model),
        "function": lambda: FunctionScorer(name=rest),
    }
    if kind not in kinds:
        raise InputError(f"--judge: {kind!r} is no kind of judge; write {FORMS}")
    try:
        return ScorerConfig(model=_checked(kinds[kind]()))
    except ValidationError as error:
        raise InputError(f"--judge: {name!r}: {error.errors()[0]['msg']}") from None


def load_scorer(config: AnyScorer, threads: int | None) -> PreferenceScorer:
    """Load a scorer into this process.

    Raises:
        InputError: it cannot be had as configured.
    """
    return build_scorer(config, threads=threads)


def _checked(scorer: AnyScorer) -> AnyScorer:
    """The same scorer, where its files say nothing against it."""
    from services.jobs.paths import is_hub_name

    if isinstance(scorer, FunctionScorer):
        find_function(scorer.name, field="--judge")
        return scorer
    folder = Path(scorer.model)
    if not folder.is_dir():
        if not is_hub_name(scorer.model):
            raise InputError(
                f"--judge: {scorer.model} is neither a folder nor a name on the Hugging Face hub (organisation/name)"
            )
        return scorer
    for problem in problems(folder, scorer):
        raise InputError(problem.replace("scorer.model.model", "--judge"))
    return scorer
