"""Pure statistics of evaluation: win rates with their uncertainty, plain and for equal lengths, and KL estimates on fresh answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from learner.errors import InputError
from learner.preference import Array, logistic

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
    return win_rate_of_preferences(preferences_of(order_averaged_logits, temperature), tie_margin)


def preferences_of(order_averaged_logits: ArrayLike, temperature: float = 1.0) -> Array:
    """The probability of each first answer to beat its second one, ``[N]``, without position bias.

    Raises:
        InputError: a logit is not a number.
    """
    preferences = logistic(np.asarray(order_averaged_logits, dtype=np.float64).ravel() / temperature)
    if not np.isfinite(preferences).all():
        raise InputError("a comparison's logit is not a number; the scorer is broken")
    return preferences


def win_rate_of_preferences(preferences: ArrayLike, tie_margin: float = 0.0) -> WinRate:
    """Win rate of the first answers, given the probability ``[N]`` of each to be the better one; see :func:`win_rate`."""
    chances = np.asarray(preferences, dtype=np.float64).ravel()
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


RIDGE = 1e-3
"""Penalty of the length model, ``RIDGE / 2 * (a² + b²)`` beside the *sum* of log losses: the pull of a thousandth of a comparison. It makes
the fit unique where preferences are separated without doubt, and moves the estimate by less than 1e-3 where they are not."""

NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-9
STEEPEST = math.sqrt(2)
"""The longest vector of features that the length model knows, (1, tanh of something)."""

CHUNK_ELEMENTS = 1 << 20
"""Resamples times comparisons that are fitted together, so that memory stays bounded."""


@dataclass(frozen=True)
class LengthControlledWinRate:
    """The win rate that is expected of answers of equal length, with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def length_controlled_win_rate(
    preferences: ArrayLike, length_differences: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> LengthControlledWinRate:
    """What the win rate would be if both sides wrote answers of the same length (AlpacaEval, arXiv 2404.04475).

    The preference is modelled as ``σ(a + b tanh(Δ / std(Δ)))``, by logistic regression on soft targets; Δ is not centred, so that Δ = 0 means
    equal lengths, and ``σ(a)`` is the answer. This is AlpacaEval's ``length_controlled_minimal``: the leaderboard's figure has a term for
    each instruction's difficulty too. Where Δ does not vary, no effect of length can be told, and the answer is the mean preference. Where Δ
    separates the preferences perfectly, the small `RIDGE` decides.

    Args:
        preferences: ``[N]``, the probability of each first answer to be the better one.
        length_differences: ``[N]``, Δ: characters of the first answer minus characters of the second.
        resamples: of the percentile bootstrap, over comparisons; std(Δ) and the fit are made anew in each.
        seed: of the resamples; equal seeds give equal intervals.

    Raises:
        InputError: there are no comparisons, their numbers differ, or one of the values cannot be.
    """
    targets = np.asarray(preferences, dtype=np.float64).ravel()
    lengths = np.asarray(length_differences, dtype=np.float64).ravel()
    if targets.size == 0:
        raise InputError("a win rate needs at least one comparison; raise evaluation.count")
    if targets.size != lengths.size:
        raise InputError(f"{targets.size} preferences do not go with {lengths.size} differences of lengths")
    if not ((targets >= 0) & (targets <= 1)).all() or not np.isfinite(lengths).all():
        raise InputError("a preference is a probability, and a difference of lengths a finite number")
    mean = float(_at_equal_length(targets, lengths, np.ones((1, targets.size)))[0])
    draws = np.random.default_rng(seed)
    even = np.full(targets.size, 1 / targets.size)
    drawn: list[float] = []
    while len(drawn) < resamples:
        together = min(resamples - len(drawn), max(1, CHUNK_ELEMENTS // targets.size))
        counts = draws.multinomial(targets.size, even, size=together).astype(np.float64)
        drawn.extend(_at_equal_length(targets, lengths, counts))
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (mean, mean)
    # a percentile interval of a skewed estimate may miss the estimate itself by a hair
    return LengthControlledWinRate(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def _at_equal_length(targets: Array, lengths: Array, counts: Array) -> Array:
    """``σ(a)`` of the length model for each resample, ``[R]``; ``counts`` ``[R, N]`` says how often each comparison is in it.

    All are fitted at once by Newton's method. Its steps are damped by ``log(1 + d) / d`` with ``d = STEEPEST * |step|``, with which it
    converges from anywhere on a logistic loss (generalised self-concordance: Sun and Tran-Dinh, arXiv 1703.04599).
    """
    scaled = _scaled(lengths, counts)
    intercept, slope = np.zeros((2, len(counts)))
    for _ in range(NEWTON_STEPS):
        chances = logistic(intercept[:, None] + slope[:, None] * scaled)
        residuals = counts * (targets - chances)
        weights = counts * chances * (1 - chances)
        weighted = weights * scaled
        gradient_a = residuals.sum(axis=1) - RIDGE * intercept
        gradient_b = (residuals * scaled).sum(axis=1) - RIDGE * slope
        h_aa, h_ab = weights.sum(axis=1) + RIDGE, weighted.sum(axis=1)
        h_bb = (weighted * scaled).sum(axis=1) + RIDGE
        determinant = h_aa * h_bb - h_ab**2
        step_a = (h_bb * gradient_a - h_ab * gradient_b) / determinant
        step_b = (h_aa * gradient_b - h_ab * gradient_a) / determinant
        size = STEEPEST * np.hypot(step_a, step_b)
        damping = np.log1p(size) / np.maximum(size, np.finfo(np.float64).tiny)
        intercept += damping * step_a
        slope += damping * step_b
        if size.max() < NEWTON_TOLERANCE:
            break
    return logistic(intercept)


def _scaled(lengths: Array, counts: Array) -> Array:
    """``tanh(Δ / std(Δ))`` in each resample, ``[R, N]``, the deviation with N - 1 as AlpacaEval has it; 0 where Δ does not vary."""
    number = counts.sum(axis=1, keepdims=True)
    mean = (counts @ lengths)[:, None] / number
    squares = (counts * (lengths - mean) ** 2).sum(axis=1, keepdims=True)
    deviation = np.sqrt(squares / np.maximum(number - 1, 1))
    same = deviation <= 1e-9 * np.abs(lengths).max(initial=1.0)
    return np.where(same, 0.0, np.tanh(lengths / np.where(same, 1.0, deviation)))


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
