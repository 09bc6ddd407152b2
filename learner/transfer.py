"""How learning one domain after another went: averages over the matrix of held-out win rates.

``R[t][d]`` is the win rate on domain d's held-out prompts after domain t; row 0 is the start policy's. Domains count
from 1. The averages are those of Lopez-Paz and Ranzato (2017, Gradient Episodic Memory, section 2: average accuracy,
backward and forward transfer) and of Chaudhry et al. (2018, Riemannian Walk, section 5: average forgetting), with win
rates in place of accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from learner.errors import InputError

Row = tuple[float | None, ...]


@dataclass(frozen=True)
class TransferMatrix:
    """Held-out win rates of every domain, after every domain that has been learned so far.

    ``rows[t][d - 1]`` is ``R[t][d]``, None where it was not measured; a start policy that was not measured is a row of
    None. While the job runs there are fewer rows than one more than domains, and every average is over the domains
    learned so far, as if there were no others. It is None where a win rate that it needs is missing, or where it has
    nothing to be taken over.
    """

    domains: tuple[str, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        """Check the shape and the values.

        Raises:
            InputError: there is no row 0, a row is of another length, there are too many, a domain is named twice, or a
                win rate is outside [0, 1].
        """
        count = len(self.domains)
        if len(set(self.domains)) != count or not count:
            raise InputError(f"domains: {', '.join(self.domains) or 'none'}; name at least one, and none twice")
        if not 1 <= len(self.rows) <= count + 1:
            raise InputError(
                f"{len(self.rows)} rows of win rates for {count} domains; give the start policy's row, and at most one a domain"
            )
        for t, row in enumerate(self.rows):
            if len(row) != count:
                raise InputError(
                    f"row {t} has {len(row)} win rates for {count} domains; write None for what is unknown"
                )
            wrong = [rate for rate in row if rate is not None and not 0 <= rate <= 1]
            if wrong:
                raise InputError(f"row {t}: {wrong[0]} is not a win rate; it must lie between 0 and 1")

    @property
    def learned(self) -> int:
        """T: how many domains have been learned so far."""
        return len(self.rows) - 1

    def rate(self, t: int, d: int) -> float | None:
        """``R[t][d]``, t from 0 and d from 1."""
        return self.rows[t][d - 1]

    def average(self) -> float | None:
        """Mean over ``d <= T`` of ``R[T][d]``."""
        return _mean([self.rate(self.learned, d) for d in range(1, self.learned + 1)])

    def forgetting(self) -> float | None:
        """Mean over ``d < T`` of ``max_{1 <= t < T} R[t][d] - R[T][d]``; negative where old domains still improve.

        The maximum is over what was measured. As in the paper it leaves out the start policy, which has learned nothing
        that it could forget.
        """
        return _mean([_difference(self._best_before(d), self.rate(self.learned, d)) for d in range(1, self.learned)])

    def backward_transfer(self) -> float | None:
        """Mean over ``d < T`` of ``R[T][d] - R[d][d]``: what later domains did to earlier ones."""
        return _mean([_difference(self.rate(self.learned, d), self.rate(d, d)) for d in range(1, self.learned)])

    def forward_transfer(self) -> float | None:
        """Mean over ``1 < d <= T`` of ``R[d - 1][d] - R[0][d]``: what earlier domains did to ones not yet learned."""
        return _mean([_difference(self.rate(d - 1, d), self.rate(0, d)) for d in range(2, self.learned + 1)])

    def _best_before(self, d: int) -> float | None:
        measured = [rate for t in range(1, self.learned) if (rate := self.rate(t, d)) is not None]
        return max(measured, default=None)


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.fsum(known) / len(known)
