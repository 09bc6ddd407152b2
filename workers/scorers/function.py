"""A Python function as a preference scorer, by Bradley-Terry: the logit is the difference of two rewards.

Functions come from installed packages, by the name of an entry point (rule 16); a job cannot name code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from learner.errors import InputError
from learner.records import Prompt, ScorerIdentity
from workers.config import FunctionScorer
from workers.scorers.base import Comparison, ScoreResult, logits_of_rewards

GROUP = "sparring.scorers"

RewardFunction = Callable[[Prompt, Sequence[str]], Sequence[float]]
"""Gives each answer to a prompt a reward; more is better."""


def function_names() -> list[str]:
    """Names of the functions that this installation offers."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_function(name: str, *, field: str = "scorer.model.name") -> EntryPoint:
    """The entry point of a function, not loaded yet.

    Raises:
        InputError: no installed package offers it, or two offer different ones.
    """
    found = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not found:
        offered = ", ".join(function_names()) or "none"
        raise InputError(f"{field}: this installation offers no scorer function {name!r}; it offers: {offered}")
    if len(found) > 1:
        raise InputError(
            f"{field}: {name!r} is offered more than once ({', '.join(sorted(found))}); uninstall all but one"
        )
    return next(iter(found.values()))


class FunctionPreferenceScorer:
    """Scores with a registered function. Its version is the release of the package that it comes from."""

    def __init__(self, config: FunctionScorer) -> None:
        point = find_function(config.name)
        function: Any = point.load()
        if not callable(function):
            raise InputError(f"scorer.model.name: {config.name!r} ({point.value}) is not a function")
        self._function: RewardFunction = function
        release = f"{point.dist.name}=={point.dist.version}" if point.dist else "unknown"
        self._identity = ScorerIdentity(kind=config.kind, name=config.name, version=release)

    @property
    def identity(self) -> ScorerIdentity:
        """The function's name and the release that it comes from."""
        return self._identity

    def score(self, comparisons: Sequence[Comparison]) -> list[ScoreResult]:
        """Logits of every comparison.

        Raises:
            InputError: the function did not return one finite number for each answer.
        """
        return [ScoreResult(logits_of_rewards(self._rewards(comparison))) for comparison in comparisons]

    def _rewards(self, comparison: Comparison) -> list[float]:
        rewards = [float(reward) for reward in self._function(comparison.prompt, comparison.answers)]
        if len(rewards) != len(comparison.answers) or not all(map(math.isfinite, rewards)):
            raise InputError(
                f"scorer.model.name: {self._identity.name!r} returned {rewards} for {len(comparison.answers)} answers to prompt "
                f"{comparison.prompt.id!r}; it must return one finite number for each"
            )
        return rewards
