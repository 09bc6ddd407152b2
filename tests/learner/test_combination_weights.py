"""The search for weights on the simplex: known minima, its guarantees, and the memory's loss by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.combination_weights import memory_loss, solve_weights
from learner.errors import InputError


def distance_to(target: Sequence[float], weights: Sequence[float]) -> float:
    return sum((w - t) ** 2 for w, t in zip(weights, target, strict=True))


def memory_loss_of_linear_margins(seed: int, domains: int, sharpness: float = 4.0):
    """The memory loss of policies whose log-ratios are linear in the weights, as they nearly are; convex."""
    generator = torch.Generator().manual_seed(seed)
    slopes = [sharpness * torch.randn(7, domains, generator=generator, dtype=torch.float64) for _ in range(domains)]
    return lambda weights: memory_loss([s @ torch.tensor(weights, dtype=torch.float64) for s in slopes], 1.0)


def test_one_domain_has_the_weight_one() -> None:
    solution = solve_weights(lambda weights: 3.0, 1)
    assert (solution.weights, solution.loss, solution.evaluations) == ((1.0,), 3.0, 1)


@pytest.mark.parametrize("best", [0.0, 0.05, 0.35, 0.5, 1.0])
def test_two_domains_get_the_best_point_of_the_grid(best: float) -> None:
    solution = solve_weights(lambda weights: abs(weights[0] - best - 0.01), 2)
    assert solution.weights == (best, pytest.approx(1 - best))
    assert solution.evaluations == 21


@pytest.mark.parametrize(
    "target", [(0.2, 0.5, 0.3), (0.0, 0.6, 0.4), (1.0, 0.0, 0.0), (0.1, 0.2, 0.3, 0.4), (0.05, 0.0, 0.6, 0.05, 0.3)]
)
def test_a_quadratic_loss_is_minimised_inside_and_on_the_borders(target: tuple[float, ...]) -> None:
    solution = solve_weights(lambda weights: distance_to(target, weights), len(target))
    assert solution.weights == pytest.approx(target, abs=0.01)


def test_the_better_of_two_valleys_is_found() -> None:
    def loss(weights: Sequence[float]) -> float:
        return min(distance_to((0.8, 0.1, 0.1), weights) + 0.1, distance_to((0.1, 0.1, 0.8), weights))

    assert solve_weights(loss, 3).weights == pytest.approx((0.1, 0.1, 0.8), abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_convex_memory_loss_is_minimised_as_well_as_by_a_fine_grid(seed: int) -> None:
    loss = memory_loss_of_linear_margins(seed, 3)
    steps = 40
    grid = [(i / steps, j / steps, (steps - i - j) / steps) for i in range(steps + 1) for j in range(steps + 1 - i)]
    assert solve_weights(loss, 3).loss <= min(map(loss, grid)) + 1e-3


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(0, 60))
@settings(max_examples=50)
def test_weights_lie_on_the_simplex_and_are_never_worse_than_equal_ones_or_one_domain(
    seed: int, count: int, extra: int
) -> None:
    frequencies = np.random.default_rng(seed).normal(0, 5, (count, count))

    def rough(weights: Sequence[float]) -> float:
        return float(np.cos(frequencies @ np.asarray(weights)).sum())

    bound = (21 if count == 2 else count + 1) + extra
    asked: list[Sequence[float]] = []
    solution = solve_weights(lambda weights: (asked.append(weights), rough(weights))[1], count, max_evaluations=bound)
    assert all(math.fsum(weights) == pytest.approx(1, abs=1e-9) and min(weights) >= 0 for weights in asked)
    assert len(asked) == solution.evaluations <= bound
    assert solution.loss == rough(solution.weights)
    single = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    assert solution.loss <= min(map(rough, [(1 / count,) * count, *single]))


def test_the_same_loss_gives_the_same_weights() -> None:
    loss = memory_loss_of_linear_margins(11, 4)
    assert solve_weights(loss, 4) == solve_weights(loss, 4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_domains_that_make_no_difference_get_equal_weights(count: int) -> None:
    assert solve_weights(lambda weights: 1.0, count).weights == pytest.approx((1 / count,) * count)


def test_the_memory_loss_takes_the_published_check_value_and_counts_domains_alike() -> None:
    fast = torch.tensor([(-10.0 + 12.0) - (-11.0 + 11.5)])
    assert memory_loss([fast], 0.1) == pytest.approx(0.6209570478, abs=1e-9)
    other = torch.tensor([1.0, -3.0, 2.0])
    expected = sum(math.log1p(math.exp(-0.5 * margin)) for margin in (1.0, -3.0, 2.0)) / 3
    assert memory_loss([other], 0.5) == pytest.approx(expected)
    assert memory_loss([other, fast.repeat(9)], 0.5) == pytest.approx(expected + math.log1p(math.exp(-0.75)))
    assert memory_loss([torch.zeros(4)], 0.1) == pytest.approx(math.log(2))


def test_an_empty_memory_is_refused() -> None:
    with pytest.raises(InputError, match="no pair"):
        memory_loss([torch.ones(2), torch.ones(0)], 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: 0"),
        ({"count": 3, "tolerance": 0.0}, "tolerance"),
        ({"count": 3, "tolerance": float("nan")}, "tolerance"),
        ({"count": 3, "max_evaluations": 3}, "at least 4"),
        ({"count": 2, "max_evaluations": 20}, "at least 21"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve_weights(lambda weights: 0.0, **arguments)


def test_a_loss_that_is_not_finite_names_its_weights() -> None:
    with pytest.raises(InputError, match=r"\(1\.0, 0\.0, 0\.0\) is nan"):
        solve_weights(lambda weights: float("nan") if weights[0] == 1 else 0.0, 3)
