"""The weights with which the policies of several domains are combined (COFS-DPO, arXiv 2406.05534).

The paper combines domains linearly; how it finds the weights could not be verified, so this is a reconstruction: the
weights minimise the DPO loss on small memories of the domains' preferences, every domain counting the same,

    lambda* = argmin_{lambda >= 0, sum lambda = 1}  sum_i (1 / |M_i|) sum_{M_i} -log sigma(beta (h_lambda - h_ref)),

with ``h = log pi(y_w) - log pi(y_l)``. A loss costs a forward pass over all memories, so evaluations are counted and
bounded, and no gradient is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learner.errors import InputError

Weights = tuple[float, ...]

GRID_STEPS = 20
"""Two domains are tried in twentieths."""

FIRST_STEP = 0.25
"""How much weight the search moves between two domains at first."""


def memory_loss(margins_by_domain: Sequence[Tensor], beta: float) -> float:
    """The sum over domains of a memory's mean loss, ``-log sigma(beta (h_lambda - h_ref))``, in nats.

    Args:
        margins_by_domain: of every domain the ``h_lambda - h_ref`` of its memory's pairs, ``[|M_i|]``.
        beta: of the objective.

    Raises:
        InputError: a memory is empty.
    """
    if any(margins.numel() == 0 for margins in margins_by_domain):
        raise InputError("a domain's memory has no pair to weigh it by; raise the share of groups that is kept")
    means = [-functional.logsigmoid(beta * margins.to(torch.float64)).mean() for margins in margins_by_domain]
    return math.fsum(float(mean) for mean in means)


@dataclass(frozen=True)
class WeightSolution:
    """Weights on the simplex, their loss, and how many weights were tried."""

    weights: Weights
    loss: float
    evaluations: int


def solve_weights(
    loss: Callable[[Sequence[float]], float], count: int, tolerance: float = 0.01, max_evaluations: int = 500
) -> WeightSolution:
    """The weights of least loss that are found; never worse than the equal weights or any single domain. Deterministic.

    One domain has the weight 1. Two are tried on the grid {0, 0.05, .., 1}. More are searched from the equal weights and
    from every single domain, the best start first, by moving weight from one domain to another, half as much at a time
    once no move helps. These moves span every feasible direction on the simplex, at its borders too, so that the search
    closes in on a stationary point of a smooth loss (Lewis and Torczon 2000, Pattern search methods for linearly
    constrained minimization); unlike softmax logits they reach weights of exactly 0. Of equal losses the weights tried
    first stay, and those are the equal ones.

    Args:
        loss: takes weights ``[count]`` on the simplex; deterministic.
        count: of domains, at least 1.
        tolerance: the search ends when moves of this much weight no longer help.
        max_evaluations: how many weights are tried at most.

    Raises:
        InputError: ``count``, ``tolerance`` or ``max_evaluations`` is out of range, or a loss is not finite.
    """
    if count < 1:
        raise InputError(f"count: {count} domains cannot be weighed; give at least 1")
    if not 0 < tolerance <= FIRST_STEP:
        raise InputError(f"tolerance: {tolerance} must be above 0 and at most {FIRST_STEP}")
    least = GRID_STEPS + 1 if count == 2 else count + 1
    if max_evaluations < least:
        raise InputError(f"max_evaluations: {max_evaluations} is too few for {count} domains; give at least {least}")
    tried = _Tried(loss, max_evaluations)
    if count == 1:
        tried((1.0,))
    elif count == 2:
        for k in sorted(range(GRID_STEPS + 1), key=lambda k: (abs(2 * k - GRID_STEPS), k)):
            tried((k / GRID_STEPS, (GRID_STEPS - k) / GRID_STEPS))
    else:
        mean = (1 / count,) * count
        starts = [mean, *(tuple(float(i == j) for j in range(count)) for i in range(count))]
        for start in sorted(starts, key=tried):
            _search(tried, start, tolerance)
    return WeightSolution(tried.best, tried.least, tried.evaluations)


class _Tried:
    """A loss that remembers what it was asked, and the best of it."""

    def __init__(self, loss: Callable[[Sequence[float]], float], bound: int) -> None:
        self._loss = loss
        self._bound = bound
        self._known: dict[Weights, float] = {}
        self.best: Weights = ()
        self.least = math.inf

    @property
    def evaluations(self) -> int:
        return len(self._known)

    @property
    def spent(self) -> bool:
        return self.evaluations >= self._bound

    def __call__(self, weights: Weights) -> float:
        if weights not in self._known:
            value = float(self._loss(weights))
            if not math.isfinite(value):
                raise InputError(
                    f"the memory loss at weights {weights} is {value}; a domain's adapter or its memory is broken"
                )
            self._known[weights] = value
            if value < self.least:
                self.best, self.least = weights, value
        return self._known[weights]


def _search(loss: _Tried, start: Weights, tolerance: float) -> None:
    """Go from ``start`` by moves that lower the loss, until none of ``tolerance`` does or the bound is reached."""
    here, step = start, FIRST_STEP
    while step >= tolerance:
        improved = False
        for source in range(len(here)):
            for target in range(len(here)):
                for there in _moved(here, source, target, step):
                    if loss.spent:
                        return
                    if loss(there) >= loss(here):
                        break
                    here, improved = there, True
        if not improved:
            step /= 2


def _moved(weights: Weights, source: int, target: int, step: float) -> Iterator[Weights]:
    """``weights`` with one, two, three steps moved from one domain to another, until the former has none left."""
    moved = list(weights)
    while source != target and moved[source] > 0:
        amount = min(step, moved[source])
        moved[target] += amount
        # What is left is what the others leave, so that rounding never adds up; less than a billionth is none.
        rest = 1.0 - math.fsum(moved[:source] + moved[source + 1 :])
        moved[source] = rest if rest > 1e-9 else 0.0
        yield tuple(moved)
