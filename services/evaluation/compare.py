"""From two sides' answers and a judge's verdicts to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.errors import InputError
from learner.evaluation import (
    LengthControlledWinRate,
    WinRate,
    length_controlled_win_rate,
    win_rate_of_preferences,
)
from learner.records import Prompt, ScorerIdentity
from services.evaluation.judges import Judge, Progress
from workers.scorers.base import Comparison


@dataclass(frozen=True)
class Player:
    """One side's answers, as they are judged.

    Attributes:
        name: what the person called it.
        answers: one to each prompt.
        best_of: how many it wrote to each, of which PairRM kept one; None where they came from a file.
        truncated_share: of all that it wrote, those that the token limit cut off; None where they came from a file.
    """

    name: str
    answers: tuple[str, ...]
    best_of: int | None = None
    truncated_share: float | None = None

    @property
    def mean_characters(self) -> float:
        """Mean length of its answers."""
        return float(np.mean([len(answer) for answer in self.answers]))


@dataclass(frozen=True)
class Outcome:
    """What came of the candidate against the baseline.

    Attributes:
        preferences: of each prompt the probability that the candidate's answer is the better one; None where the judge did not say.
        win_rate: ties count one half; of the prompts with a verdict.
        length_controlled: of the same, expected at equal lengths.
        notes: the judge's counts.
    """

    prompts: tuple[Prompt, ...]
    candidate: Player
    baseline: Player
    judge: ScorerIdentity
    preferences: tuple[float | None, ...]
    win_rate: WinRate
    length_controlled: LengthControlledWinRate
    notes: Mapping[str, int]

    @property
    def without_verdict(self) -> int:
        """Prompts on which the judge did not say which answer is better."""
        return self.preferences.count(None)

    @property
    def mean_preference(self) -> float:
        """Mean probability of the candidate's answers to be the better ones."""
        return float(np.mean([preference for preference in self.preferences if preference is not None]))

    def as_data(self) -> dict[str, Any]:
        """The numbers as plain data under stable names."""
        rate, equal = self.win_rate, self.length_controlled
        return {
            "candidate": _player(self.candidate),
            "baseline": _player(self.baseline),
            "judge": self.judge.model_dump(mode="json"),
            "prompts": len(self.prompts),
            "compared": rate.count,
            "without_verdict": self.without_verdict,
            **self.notes,
            "win_rate": rate.mean,
            "win_rate_low": rate.low,
            "win_rate_high": rate.high,
            "tie_rate": rate.ties,
            "length_controlled_win_rate": equal.mean,
            "length_controlled_win_rate_low": equal.low,
            "length_controlled_win_rate_high": equal.high,
            "mean_preference": self.mean_preference,
        }


def compare(
    prompts: Sequence[Prompt],
    candidate: Player,
    baseline: Player,
    judge: Judge,
    *,
    tie_margin: float,
    seed: int,
    progress: Progress,
) -> Outcome:
    """Have the candidate's answers judged against the baseline's on the same prompts.

    Args:
        prompts: in the order of both sides' answers.
        tie_margin: ``|P - 1/2|`` up to which a comparison is a tie.
        seed: of the bootstrap.

    Raises:
        InputError: the judge gave no verdict at all, or it cannot judge.
    """
    comparisons = [
        Comparison(prompt, (first, second))
        for prompt, first, second in zip(prompts, candidate.answers, baseline.answers, strict=True)
    ]
    verdicts = judge.judge(comparisons, progress)
    judged = [
        (preference, len(comparison.answers[0]) - len(comparison.answers[1]))
        for preference, comparison in zip(verdicts.preferences, comparisons, strict=True)
        if preference is not None
    ]
    if not judged:
        raise InputError(
            f"the judge {judge.identity.name} said neither A nor B of any of {len(prompts)} prompts; name another --judge-model, or raise "
            "--judge-max-tokens"
        )
    preferences, lengths = zip(*judged, strict=True)
    return Outcome(
        prompts=tuple(prompts),
        candidate=candidate,
        baseline=baseline,
        judge=judge.identity,
        preferences=verdicts.preferences,
        win_rate=win_rate_of_preferences(preferences, tie_margin),
        length_controlled=length_controlled_win_rate(preferences, lengths, seed=seed),
        notes=verdicts.notes,
    )


def _player(player: Player) -> dict[str, Any]:
    return {
        "name": player.name,
        "mean_characters": player.mean_characters,
        "best_of": player.best_of,
        "truncated_share": player.truncated_share,
    }
