"""Pure statistics of evaluation: win rates with their uncertainty, and KL estimates on fresh answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from learner.errors import InputError
from learner.preference import logistic

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons won, ties counting one half, with a 95 % interval. ``ties`` is the share of ties."""

    mean: float
    low: float
    high: float
    ties: float
    count: int


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share out of ``count`` trials; sensible at 0 and at 1 too."""
    z2 = NORMAL_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_95 / (1 + z2 / count) * math.sqrt(max(share * (1 - share), 0.0) / count + z2 / (4 * count**2))
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def win_rate_of_outcomes(outcomes: Sequence[float]) -> WinRate:
    """Win rate of outcomes that are 1 (won), 1/2 (tied) or 0 (lost).

    The interval is Wilson's with ties as half a win, which is wide enough: outcomes with ties vary less than wins and
    losses.

    Raises:
        InputError: there are no outcomes, or one is neither 0, 1/2 nor 1.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    if values.size == 0:
        raise InputError("a win rate needs at least one comparison; raise evaluation.count")
    if not np.isin(values, (0.0, 0.5, 1.0)).all():
        raise InputError("an outcome is 1 (won), 0.5 (tied) or 0 (lost)")
    mean = float(values.mean())
    low, high = wilson_interval(mean, values.size)
    return WinRate(mean=mean, low=low, high=high, ties=float((values == 0.5).mean()), count=values.size)


def win_rate(order_averaged_logits: ArrayLike, tie_margin: float = 0.0, temperature: float = 1.0) -> WinRate:
    """Win rate of the first answers against the second.

    Args:
        order_averaged_logits: ``[N]``, ``(m[a, b] - m[b, a]) / 2``: the scorer's logit that a beats b without position
            bias.
        tie_margin: ``|P(a beats b) - 1/2|`` up to which a comparison is a tie.
        temperature: divides the logits.
    """
    chances = logistic(np.asarray(order_averaged_logits, dtype=np.float64).ravel() / temperature)
    if not np.isfinite(chances).all():
        raise InputError("a comparison's logit is not a number; the scorer is broken")
    outcomes = np.where(np.abs(chances - 0.5) <= tie_margin, 0.5, (chances > 0.5).astype(np.float64))
    return win_rate_of_outcomes(outcomes.tolist())


def win_rate_by_domain(
    order_averaged_logits: Sequence[float],
    domains: Sequence[str | None],
    tie_margin: float = 0.0,
    temperature: float = 1.0,
) -> dict[str, WinRate]:
    """Win rate of the first answers against the second within each domain, domains in alphabetical order.

    Args:
        order_averaged_logits: as `win_rate` takes them.
        domains: the domain of each comparison's prompt; comparisons of prompts without one (None) are left out.
        tie_margin: as `win_rate` takes it.
        temperature: as `win_rate` takes it.
    """
    logits: dict[str, list[float]] = {}
    for logit, domain in zip(order_averaged_logits, domains, strict=True):
        if domain is not None:
            logits.setdefault(domain, []).append(logit)
    return {domain: win_rate(logits[domain], tie_margin, temperature) for domain in sorted(logits)}


KlEstimator = Literal["k1", "k3"]

MAX_EXPONENT = 60.0
"""Log-ratio of one token above which `k3` no longer grows exponentially, so that the estimate stays finite."""


@dataclass(frozen=True)
class KlEstimate:
    """KL divergence in nats an answer, with its standard error, the estimator's name and the number of answers."""

    nats: float
    standard_error: float
    estimator: KlEstimator
    count: int


def kl_divergence(
    policy_logps: Sequence[Sequence[float]], reference_logps: Sequence[Sequence[float]], estimator: KlEstimator = "k3"
) -> KlEstimate:
    """Estimate KL(policy ‖ reference) on answers that the policy itself drew at temperature 1.

    `k1` sums ``log p - log q`` over an answer's tokens. `k3` sums ``q / p - 1 - log(q / p)``, which has the same mean,
    is never negative and varies less. Both are unbiased by the chain rule. On answers that another policy wrote neither
    is a KL.

    Args:
        policy_logps: per answer, the policy's log-probability of every token, in nats.
        reference_logps: the reference's, of the same tokens.
        estimator: which one.

    Raises:
        InputError: there are no answers.
    """
    per_answer = []
    for policy, reference in zip(policy_logps, reference_logps, strict=True):
        log_ratio = np.asarray(reference, dtype=np.float64) - np.asarray(policy, dtype=np.float64)
        if estimator == "k1":
            per_answer.append(float(-log_ratio.sum()))
        else:
            per_answer.append(float((np.expm1(np.minimum(log_ratio, MAX_EXPONENT)) - log_ratio).sum()))
    if not per_answer:
        raise InputError("a KL estimate needs at least one answer; raise evaluation.count")
    spread = float(np.std(per_answer, ddof=1)) / math.sqrt(len(per_answer)) if len(per_answer) > 1 else math.nan
    return KlEstimate(float(np.mean(per_answer)), spread, estimator, len(per_answer))


def entropy_per_token(policy_logps: Sequence[Sequence[float]]) -> float:
    """The policy's entropy in nats a token, estimated on answers that it drew at temperature 1: the mean of ``-log p``.

    Raises:
        InputError: there are no tokens.
    """
    tokens = sum(len(answer) for answer in policy_logps)
    if not tokens:
        raise InputError("an entropy estimate needs at least one token; raise evaluation.count")
    return -math.fsum(chain.from_iterable(policy_logps)) / tokens
