"""What one optimizer step tells of its batch, under the names that all objectives share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from learner.examples import Example
from learner.records import ScoredGroup


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
    groups: Sequence[ScoredGroup], examples: Sequence[Example], newest_version: int
) -> dict[str, float]:
    """How many versions old the policy's own answers are; an opponent's are older than their group's version by design.

    Args:
        groups: that were learned from.
        examples: made of them, in the same order.
        newest_version: published so far.
    """
    ages = [
        newest_version - group.version
        for group, example in zip(groups, examples, strict=True)
        for answer in example.answers
        if answer.version == group.version
    ]
    return {"staleness_mean": _mean([float(age) for age in ages]), "staleness_max": float(max(ages))} if ages else {}
