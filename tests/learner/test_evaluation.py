"""Win rates with intervals that hold at the edges, for equal lengths too, and KL estimates that agree with the exact value."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import InputError
from learner.evaluation import (
    KlEstimator,
    kl_divergence,
    length_controlled_win_rate,
    wilson_interval,
    win_rate,
    win_rate_by_domain,
    win_rate_of_outcomes,
)

Preferences = np.ndarray[tuple[int], np.dtype[np.float64]]


def test_ties_count_one_half_and_are_reported() -> None:
    rate = win_rate([2.0, -1.0, 0.0, 3.0])
    assert (rate.mean, rate.ties, rate.count) == (0.625, 0.25, 4)
    assert win_rate([0.3, 3.0], tie_margin=0.1).mean == 0.75
    assert win_rate([0.3, 3.0], tie_margin=0.1, temperature=0.1).ties == 0


def test_the_interval_is_sensible_at_the_edges() -> None:
    assert wilson_interval(0.5, 256) == pytest.approx((0.4391, 0.5609), abs=2e-4)
    nothing, everything = win_rate_of_outcomes([0.0] * 50), win_rate_of_outcomes([1.0] * 50)
    assert nothing.low == 0 and 0.05 < nothing.high < 0.1
    assert everything.high == 1 and 0.9 < everything.low < 0.95


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=400))
def test_the_interval_holds_the_mean_and_mirrors_it(outcomes: list[float]) -> None:
    rate, mirrored = win_rate_of_outcomes(outcomes), win_rate_of_outcomes([1 - x for x in outcomes])
    assert 0 <= rate.low <= rate.mean <= rate.high <= 1
    assert rate.low < rate.high
    assert mirrored.low == pytest.approx(1 - rate.high)


def test_empty_or_broken_comparisons_are_refused() -> None:
    for wrong in ([], [0.3]):
        with pytest.raises(InputError):
            win_rate_of_outcomes(wrong)
    with pytest.raises(InputError, match="not a number"):
        win_rate([float("nan")])


def test_a_domains_win_rate_is_that_of_its_comparisons_alone() -> None:
    logits, domains = [2.0, -1.0, 0.3, 3.0, -2.0], ["b", "a", "b", None, "a"]
    rates = win_rate_by_domain(logits, domains, tie_margin=0.1, temperature=1.0)
    assert list(rates) == ["a", "b"]
    assert rates == {"a": win_rate([-1.0, -2.0], 0.1), "b": win_rate([2.0, 0.3], 0.1)}
    assert rates["b"].mean == 0.75
    assert win_rate_by_domain([1.0], [None]) == {}


def drawn_comparisons(seed: int, count: int, effect: float) -> tuple[Preferences, Preferences]:
    """Preferences with an effect of length, and differences of lengths that lean to one side."""
    draws = np.random.default_rng(seed)
    lengths = np.round(draws.normal(30, 120, count))
    logits = 0.4 + effect * np.tanh(lengths / lengths.std(ddof=1)) + draws.normal(0, 0.8, count)
    return 1 / (1 + np.exp(-logits)), lengths


def slow_estimate(preferences: Preferences, lengths: Preferences) -> float:
    """The length model without its ridge, by gradient descent on the mean log loss."""
    scaled = np.tanh(lengths / lengths.std(ddof=1))
    intercept = slope = 0.0
    for _ in range(4000):
        residuals = preferences - 1 / (1 + np.exp(-(intercept + slope * scaled)))
        intercept += 2 * float(residuals.mean())
        slope += 2 * float((residuals * scaled).mean())
    return 1 / (1 + math.exp(-intercept))


@pytest.mark.parametrize("effect", [-2.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("count", [24, 256])
def test_the_length_controlled_win_rate_agrees_with_a_slow_optimiser(effect: float, count: int) -> None:
    preferences, lengths = drawn_comparisons(7, count, effect)
    rate = length_controlled_win_rate(preferences, lengths, resamples=0)
    assert rate.mean == pytest.approx(slow_estimate(preferences, lengths), abs=1e-4)


def test_each_resample_of_the_interval_is_a_fit_of_its_own() -> None:
    preferences, lengths = drawn_comparisons(3, 40, 2.0)
    rate = length_controlled_win_rate(preferences, lengths, resamples=200, seed=5)
    counts = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), size=200)
    refitted = []
    for row in counts:
        places = np.repeat(np.arange(40), row)
        refitted.append(length_controlled_win_rate(preferences[places], lengths[places], resamples=0).mean)
    assert (rate.low, rate.high) == pytest.approx(tuple(np.quantile(refitted, (0.025, 0.975))), abs=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        draws = np.random.default_rng(seed)
        lengths = draws.normal(50, 100, 200)
        chances = 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(lengths / 100))))
        won = (draws.random(200) < chances).astype(float)
        rate = length_controlled_win_rate(won, lengths, resamples=200)
        covered += rate.low <= 1 / (1 + math.exp(-0.4)) <= rate.high
    assert covered >= 88


def test_without_an_effect_of_length_it_is_the_mean_preference() -> None:
    draws = np.random.default_rng(0)
    preferences = draws.beta(2, 1, 500)
    lengths = np.concatenate(
        [preferences, preferences]
    )  # every preference once with the length, and once with its opposite
    lengths[500:] *= -1
    both = np.concatenate([preferences, preferences])
    assert length_controlled_win_rate(both, lengths, resamples=0).mean == pytest.approx(both.mean(), abs=1e-4)
    same = length_controlled_win_rate([1.0, 0.0, 0.7], [3, 3, 3], resamples=0)
    assert same.mean == pytest.approx(1.7 / 3, abs=1e-3), "lengths that do not vary say nothing"
    assert length_controlled_win_rate([0.8], [40]).mean == pytest.approx(0.8, abs=1e-2)


def test_preferences_without_doubt_have_a_finite_fit() -> None:
    lengths = np.array([-3.0, -2, -1, 1, 2, 3])
    by_length = length_controlled_win_rate((lengths > 0).astype(float), lengths)
    assert by_length.mean == pytest.approx(0.5, abs=1e-6) and by_length.low < 0.5 < by_length.high
    always = length_controlled_win_rate(np.ones(50), np.arange(50.0))
    assert 0.99 < always.low <= always.mean <= always.high < 1


comparisons = st.lists(st.tuples(st.floats(0, 1), st.integers(-5000, 5000)), min_size=1, max_size=60)


@given(comparisons, st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_the_estimate_knows_neither_sides_order_nor_unit(
    drawn: list[tuple[float, int]], unit: float, random: Random
) -> None:
    def estimate(rows: list[tuple[float, float]]) -> float:
        rate = length_controlled_win_rate([p for p, _ in rows], [d for _, d in rows], resamples=20)
        assert 0 <= rate.low <= rate.mean <= rate.high <= 1
        return rate.mean

    mean = estimate([*drawn])
    shuffled = random.sample(drawn, len(drawn))
    assert estimate([(p, unit * d) for p, d in shuffled]) == pytest.approx(mean, abs=1e-6)
    assert estimate([(1 - p, -d) for p, d in drawn]) == pytest.approx(1 - mean, abs=1e-6)


def test_an_interval_is_the_same_again_by_its_seed() -> None:
    preferences, lengths = drawn_comparisons(1, 64, 1.0)
    first, again, other = (length_controlled_win_rate(preferences, lengths, seed=seed) for seed in (4, 4, 5))
    assert first == again and first.mean == other.mean and first.low != other.low


@pytest.mark.parametrize(
    ("preferences", "lengths", "said"),
    [
        ([], [], "at least one"),
        ([0.5], [1, 2], "1 preferences do not go with 2"),
        ([1.5], [1], "is a probability"),
        ([0.5], [math.inf], "a finite number"),
    ],
)
def test_comparisons_that_cannot_be_are_refused(preferences: list[float], lengths: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        length_controlled_win_rate(preferences, lengths)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_agree_with_the_exact_value(estimator: KlEstimator) -> None:
    policy, reference = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.3, 0.3])
    exact = 4 * float((policy * np.log(policy / reference)).sum())
    drawn = np.random.default_rng(0).choice(3, size=(20_000, 4), p=policy)
    estimate = kl_divergence(np.log(policy)[drawn].tolist(), np.log(reference)[drawn].tolist(), estimator)
    assert estimate.nats == pytest.approx(exact, abs=4 * estimate.standard_error)
    assert (estimate.estimator, estimate.count) == (estimator, 20_000)


@given(st.lists(st.lists(st.floats(-1e4, 0), min_size=1, max_size=5), min_size=1, max_size=5))
def test_k3_is_finite_and_never_negative(policy: list[list[float]]) -> None:
    estimate = kl_divergence(policy, [[x / 2 for x in row] for row in policy])
    assert np.isfinite(estimate.nats) and estimate.nats >= 0


def test_identical_policies_have_no_divergence() -> None:
    assert kl_divergence([[-1.0, -2.0]], [[-1.0, -2.0]]).nats == 0
    with pytest.raises(InputError, match="at least one answer"):
        kl_divergence([], [])
