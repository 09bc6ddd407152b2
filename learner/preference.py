"""From ordered logits to win probabilities.

``m[i, j]`` is the scorer's logit that answer i beats answer j when i is shown first. Everything that the learner knows
about preferences is derived from these numbers here, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from learner.errors import InputError
from learner.records import Answer, Module, ScoredGroup

Probabilities = Literal["paper", "released", "raw"]
Truncated = Literal["keep", "drop", "penalise"]
Array = NDArray[np.float64]

CERTAIN_LOGIT = 30.0
"""A preference beyond doubt, as a penalised answer loses: a probability of 1e-13 at temperature 1, and still a finite number."""


def logistic(logits: ArrayLike) -> Array:
    """``1 / (1 + exp(-x))`` in float64, finite and exactly 1/2 at 0; never overflows."""
    result: Array = 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))
    return result


def order_averaged(ordered_logits: ArrayLike) -> Array:
    """``(m[i, j] - m[j, i]) / 2``: what is left of the logits when position bias cancels. Antisymmetric, ``[K, K]``."""
    logits = np.asarray(ordered_logits, dtype=np.float64)
    return (logits - logits.T) / 2


def win_logits(ordered_logits: ArrayLike, temperature: float = 1.0, probabilities: Probabilities = "paper") -> Array:
    """The logits of :func:`win_matrix`, ``[K, K]`` with a diagonal of 0.

    Raises:
        InputError: the logits are not a finite square matrix, or the temperature is not above 0.
    """
    logits = np.asarray(ordered_logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or not np.isfinite(logits).all():
        raise InputError(f"ordered logits must be a square matrix of finite numbers, not of shape {logits.shape}")
    if not temperature > 0:
        raise InputError(f"scorer.temperature: {temperature} must be above 0")
    if probabilities == "raw":
        result = logits.copy()
    elif probabilities == "paper":
        result = order_averaged(logits)
    else:
        scores = (logits - logits.T).mean(axis=1)
        result = scores[:, None] - scores[None, :]
    np.fill_diagonal(result, 0.0)
    return result / temperature


def win_matrix(ordered_logits: ArrayLike, temperature: float = 1.0, probabilities: Probabilities = "paper") -> Array:
    """``P[i, j]``, the probability that answer i beats answer j; the diagonal is 1/2.

    SPPO (arXiv 2405.00675, section 4) leaves open how a scorer's logits become probabilities, and its code differs from
    its text:

    * ``paper``: the logistic function of the order-averaged logit;
    * ``released``: of ``S_i - S_j`` with ``S_i = mean_k (m[i, k] - m[k, i])``, as the published code has it, which is
      transitive by construction and twice as sharp;
    * ``raw``: of ``m[i, j]`` itself, one order only.

    Args:
        ordered_logits: ``[K, K]``.
        temperature: divides the logits.
        probabilities: which of the three.
    """
    result = logistic(win_logits(ordered_logits, temperature, probabilities))
    np.fill_diagonal(result, 0.5)
    return result


def win_probabilities(matrix: ArrayLike) -> Array:
    """Each answer's probability to beat a random one of the K, itself included: the matrix's row means, ``[K]``."""
    result: Array = np.asarray(matrix, dtype=np.float64).mean(axis=1)
    return result


def usable_answers(group: ScoredGroup, truncated: Truncated) -> tuple[int, ...]:
    """Indices of the answers that take part: all of them, or with ``drop`` those that ended by themselves."""
    return tuple(i for i, answer in enumerate(group.answers) if truncated != "drop" or not answer.truncated)


def effective_logits(group: ScoredGroup, truncated: Truncated) -> Array:
    """The ordered logits after the rule for answers that were cut off (``sampling.truncated``, rule 2).

    ``keep`` leaves them as they are. ``drop`` removes the cut answers' rows and columns, so the matrix is over
    :func:`usable_answers`. ``penalise`` lets a cut answer lose, in both orders, against every answer that ended.
    """
    logits = np.asarray(group.ordered_logits, dtype=np.float64)
    if truncated == "drop":
        kept = list(usable_answers(group, truncated))
        return logits[np.ix_(kept, kept)]
    if truncated == "penalise":
        cut = np.array([answer.truncated for answer in group.answers])
        logits = np.where(cut[:, None] & ~cut[None, :], -CERTAIN_LOGIT, logits)
        logits = np.where(~cut[:, None] & cut[None, :], CERTAIN_LOGIT, logits)
    return logits


def fast_vs_slow_win_rate(
    groups: Sequence[ScoredGroup],
    temperature: float = 1.0,
    writer: Callable[[Answer], Module | None] = attrgetter("module"),
) -> float | None:
    """Mean probability that an answer of the fast adapter beats one of the slow adapter to the same prompt.

    Every group in which both wrote counts the same. None where there is no such group.

    Args:
        groups: scored groups.
        temperature: the scorer's.
        writer: which adapter an answer counts for, or None; by default the role that its writer had then.
    """
    rates = []
    for group in groups:
        writers = [writer(answer) for answer in group.answers]
        places = {module: [i for i, name in enumerate(writers) if name == module] for module in ("fast", "slow")}
        if all(places.values()):
            matrix = win_matrix(group.ordered_logits, temperature)
            rates.append(float(matrix[np.ix_(places["fast"], places["slow"])].mean()))
    return float(np.mean(rates)) if rates else None
