"""Win rates with intervals that hold at the edges, and KL estimates that agree with the exact value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import InputError
from learner.evaluation import (
    KlEstimator,
    kl_divergence,
    wilson_interval,
    win_rate,
    win_rate_by_domain,
    win_rate_of_outcomes,
)


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
