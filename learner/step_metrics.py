"""What one optimizer step tells of its batch, under the names that all objectives share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from learner.examples import Example


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def logp_metrics(examples: Sequence[Example], policy_logps: Sequence[Sequence[float]]) -> dict[str, float]:
    """Log-probabilities of the best and the worst answers, in nats, before the step.

    Their change is counted from the policy that wrote the answer, by the sampler's own log-probabilities: in rounds
    that is the policy at the round's start, or the opponent. Answers from outside, which have none, do not enter.
    """
    metrics = {"answer_length_tokens": _mean([float(len(answer)) for e in examples for _, answer in e.texts])}
    for name, place in (("chosen", 0), ("rejected", -1)):
        metrics[f"{name}_logp"] = _mean([logps[place] for logps in policy_logps])
        changes = [
            logps[place] - math.fsum(written)
            for example, logps in zip(examples, policy_logps, strict=True)
            if (written := example.answers[place].logprobs) is not None
        ]
        if changes:
            metrics[f"{name}_logp_change"] = _mean(changes)
    return metrics


def staleness_metrics(
    examples: Sequence[Example], newest_version: int, opponent: Literal["slow"] | int | None
) -> dict[str, float]:
    """How many versions old the policy's own answers are; an opponent is older by design."""
    versions = [a.version for example in examples for a in example.answers if a.version not in (None, opponent)]
    ages = [newest_version - version for version in versions if version is not None]
    return {"staleness_mean": _mean([float(age) for age in ages]), "staleness_max": float(max(ages))} if ages else {}
