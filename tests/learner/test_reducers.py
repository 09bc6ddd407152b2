"""What becomes of the ranks' gradients: the mean, the median of every coordinate, the Flag Aggregator; with one of them wrong, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from learner.aggregation import coordinate_median, flag_aggregate
from learner.ranks import OneRank
from learner.reducer import build_reducer
from tests.learner.rank_threads import ThreadRanks, on_ranks

Rule = Callable[[Tensor], Tensor]
RULES = pytest.mark.parametrize("rule", [coordinate_median, flag_aggregate])

seeds = st.integers(0, 2**31 - 1)


def honest(seed: int, ranks: int, size: int = 400, agreement: float = 1.0) -> tuple[Tensor, Tensor]:
    """A gradient, and each rank's estimate of it: itself times ``agreement`` with as much noise as it is long."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(size, generator=generator)
    return truth, agreement * truth + torch.randn(ranks, size, generator=generator)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@RULES
@given(seed=seeds, ranks=st.integers(1, 8), length=st.floats(1e-6, 1e6))
def test_equal_gradients_give_themselves_back(rule: Rule, seed: int, ranks: int, length: float) -> None:
    gradient = length * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rule(gradient.expand(ranks, -1)), gradient, rtol=1e-5, atol=1e-6 * length)


@RULES
@given(seed=seeds, data=st.data(), ranks=st.integers(2, 7))
def test_the_order_of_the_ranks_does_not_matter(rule: Rule, seed: int, data: st.DataObject, ranks: int) -> None:
    vectors = honest(seed, ranks)[1]
    order = data.draw(st.permutations(range(ranks)))
    torch.testing.assert_close(rule(vectors[order]), rule(vectors), rtol=1e-3, atol=1e-4)


@RULES
@given(seed=seeds, ranks=st.integers(2, 7), factor=st.floats(1e-3, 1e3))
def test_gradients_times_a_factor_give_the_result_times_the_factor(
    rule: Rule, seed: int, ranks: int, factor: float
) -> None:
    vectors = honest(seed, ranks)[1]
    torch.testing.assert_close(rule(factor * vectors), factor * rule(vectors), rtol=1e-3, atol=1e-4 * factor)


ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda vector: (
        10 * vector.norm() * torch.nn.functional.normalize(torch.randn(vector.shape, generator=_generator()), dim=0)
    ),
    "sign-flipped": lambda vector: -vector,
    "sign-flipped x100": lambda vector: -100 * vector,
    "x100": lambda vector: 100 * vector,
    "not a number": lambda vector: vector * torch.nan,
    "infinite": lambda vector: vector * torch.inf,
    "zero": lambda vector: 0 * vector,
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@RULES
@pytest.mark.parametrize("attack", ATTACKS)
@given(seed=seeds, place=st.integers(0, 4))
def test_one_wrong_rank_of_five_hardly_changes_direction_and_length(
    rule: Rule, attack: str, seed: int, place: int
) -> None:
    truth, vectors = honest(seed, 5)
    undisturbed = rule(vectors)
    disturbed = vectors.clone()
    disturbed[place] = ATTACKS[attack](vectors[place])
    found = rule(disturbed)
    assert cosine(found, truth) > 0.65
    assert 0.4 < float(found.norm() / undisturbed.norm()) < 1.4


@pytest.mark.parametrize("attack", ["random", "sign-flipped x100"])
def test_one_wrong_rank_of_five_turns_the_mean_away(attack: str) -> None:
    truth, vectors = honest(3, 5)
    vectors[2] = ATTACKS[attack](vectors[2])
    assert cosine(vectors.mean(0), truth) < 0.5


def test_the_flag_aggregator_is_near_the_mean_of_gradients_that_agree() -> None:
    _, vectors = honest(0, 5, agreement=5.0)
    mean, found = vectors.mean(0), flag_aggregate(vectors)
    assert cosine(found, mean) > 0.999
    assert float(found.norm() / mean.norm()) == pytest.approx(1, abs=0.02)


def test_the_flag_aggregator_projects_onto_the_directions_that_most_agree_on() -> None:
    """Checked against a singular value decomposition of the vectors themselves."""
    _, vectors = honest(4, 5)
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    for directions in (1, 2, 4):
        basis = torch.linalg.svd(units.T, full_matrices=False).U[:, :directions]
        away = (1 - (units @ basis).square().sum(1)).abs()
        weighted = units * ((away + 1e-7) ** -0.25)[:, None]
        basis = torch.linalg.svd(weighted.T, full_matrices=False).U[:, :directions]
        expected = vectors.double().norm(dim=1).median() / 5 * (basis @ (basis.T @ units.sum(0)))
        found = flag_aggregate(vectors, directions=directions)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@RULES
def test_nothing_finite_gives_nothing_finite(rule: Rule) -> None:
    assert rule(torch.full((3, 4), torch.nan)).isnan().all()


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    assert coordinate_median(torch.tensor([[1.0, 8.0], [2.0, 0.0], [4.0, 4.0], [9.0, 2.0]])).tolist() == [3.0, 3.0]


def weights_with(gradients: list[Tensor | None]) -> list[nn.Parameter]:
    weights = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    return weights


@pytest.mark.parametrize("kind", ["mean", "median", "flag"])
def test_one_rank_keeps_its_gradient(kind: Literal["mean", "median", "flag"]) -> None:
    weights = weights_with([torch.ones(2, 2), None])
    build_reducer(kind, OneRank()).reduce(weights, 1, 1.0)
    assert weights[0].grad is not None and weights[0].grad.tolist() == [[1, 1], [1, 1]]
    assert weights[1].grad is not None and weights[1].grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["mean", "median", "flag"])
def test_equal_shares_of_three_ranks_give_their_sum_on_all(kind: Literal["mean", "median", "flag"]) -> None:
    def reduce(ranks: ThreadRanks) -> list[list[float]]:
        weights = weights_with([torch.full((2, 2), 0.5), None])
        build_reducer(kind, ranks).reduce(weights, 3, 1 / 3)
        return [weight.grad.flatten().tolist() for weight in weights if weight.grad is not None]

    for found in on_ranks(3, reduce):
        assert found[0] == pytest.approx([1.5] * 4) and found[1] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["median", "flag"])
def test_ranks_without_examples_have_no_say(kind: Literal["median", "flag"]) -> None:
    def reduce(ranks: ThreadRanks) -> list[float]:
        active = ranks.rank < 3
        weights = weights_with([torch.full((2, 2), 1.0) if active else None, torch.ones(3) if active else None])
        build_reducer(kind, ranks).reduce(weights, 3, 1 / 3 if active else 0.0)
        return [float(weight.grad.flatten()[0]) for weight in weights if weight.grad is not None]

    for found in on_ranks(7, reduce):
        assert found == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("kind", ["mean", "median", "flag"])
def test_equal_examples_give_their_gradient_back_whatever_the_shares_are(
    kind: Literal["mean", "median", "flag"],
) -> None:
    shares = [0.5, 0.25, 0.25]

    def reduce(ranks: ThreadRanks) -> list[float]:
        share = shares[ranks.rank]
        weights = weights_with([torch.full((2, 2), 3.0 * share), torch.full((3,), -share)])
        build_reducer(kind, ranks).reduce(weights, 3, share)
        return [float(weight.grad.flatten()[0]) for weight in weights if weight.grad is not None]

    for found in on_ranks(3, reduce):
        assert found == pytest.approx([3.0, -1.0])
