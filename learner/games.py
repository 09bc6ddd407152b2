"""Self-play preference optimisation without a language model: exact dynamics in games given by a preference matrix.

A prompt with n possible answers is a matrix ``preferences`` [n, n], entry (i, j) the probability P(i > j) that answer i is preferred to answer j, with
P + Pᵀ = 1. Two policies that answer it play a symmetric constant-sum game. A symmetric optimal strategy of that game is the *von Neumann winner*
(Dudík et al. 2015, arXiv 1502.06362): no policy is preferred to it more than half the time. It exists also where preferences are intransitive and no
single answer beats all others.

Every expectation is a sum over answers: no sampling, no network, no optimiser. What is left is what an objective aims at:

* `sppo_step`: its *average* policy reaches the winner, at the rate of `sppo_gap_bound`.
* `kl_regularised_optimum` of `bradley_terry_rewards` fitted once: blind to intransitivity.
* `dpo_step` with a fixed reference: aims at a regularised equilibrium. With the previous iterate as the reference: near SPPO for weak preferences.

Policies are held as natural logarithms, since the learning rates in use (η = 1000) underflow anything else. The last axis is the answers, [..., n];
leading axes are independent runs. Nothing is torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from learner.errors import InputError
from learner.preference import Array, logistic

_PIVOT = 1e-12
_GAP = 1e-9
_NEWTON_STEPS = 500


def checked_preferences(preferences: npt.ArrayLike) -> Array:
    """The matrix [n, n] as float64.

    Raises:
        InputError: it is not square, a probability is outside [0, 1], or P + Pᵀ is not 1 (so the diagonal is ½).
    """
    matrix = np.asarray(preferences, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise InputError(f"preferences: shape {matrix.shape}; allowed is [n, n]: give P(i > j) for every pair.")
    if not ((matrix >= 0) & (matrix <= 1)).all():
        raise InputError(
            f"preferences: values from {matrix.min()} to {matrix.max()}; allowed are probabilities, 0 to 1."
        )
    if not np.allclose(matrix + matrix.T, 1, rtol=0, atol=1e-12):
        raise InputError("preferences: P(i > j) + P(j > i) is not 1 for every pair; average the two orders first.")
    return matrix


def weighted_rock_paper_scissors(stakes: tuple[float, float, float]) -> Array:
    """Rock-paper-scissors [3, 3] with unequal stakes (a, b, c): P(0 > 1) = (1 + a)/2, P(2 > 0) = (1 + b)/2, P(1 > 2) = (1 + c)/2.

    The von Neumann winner is (c, b, a) / (a + b + c): each answer is played as often as the stake of the duel that it has no part in.

    Args:
        stakes: each in (0, 1].
    """
    a, b, c = stakes
    return checked_preferences((1 + np.array([[0, a, -b], [-a, 0, c], [b, -c, 0]])) / 2)


def bradley_terry_preferences(rewards: npt.ArrayLike) -> Array:
    """Transitive preferences [n, n]: P(i > j) = σ(r_i − r_j) for ``rewards`` [n]. The winner is the answer with the largest reward."""
    values = np.asarray(rewards, dtype=np.float64)
    return checked_preferences(logistic(values[:, None] - values[None, :]))


def random_preferences(answers: int, strength: float, generator: np.random.Generator) -> Array:
    """Preferences [n, n] with P(i > j) − ½ independent and uniform in ±strength/2 for i < j; ``strength`` in (0, 1]."""
    upper = np.triu(generator.uniform(-strength, strength, (answers, answers)), 1)
    return checked_preferences((1 + upper - upper.T) / 2)


def weakened(preferences: Array, factor: float) -> Array:
    """The same game with every P − ½ multiplied by ``factor`` in [0, 1]. The von Neumann winner stays the same."""
    return checked_preferences(0.5 + factor * (preferences - 0.5))


def uniform(answers: int) -> Array:
    """The uniform policy as logarithms, [n]."""
    return np.full(answers, -np.log(answers))


def normalised(scores: Array) -> Array:
    """Log-policies [..., n] proportional to exp(scores)."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def win_rates(preferences: Array, policy: Array) -> Array:
    """P(y > π) = Σ_y' π(y') P(y > y') for every answer y; ``policy`` as probabilities [..., n], result [..., n]."""
    result: Array = policy @ preferences.T
    return result


def duality_gap(preferences: Array, policy: Array) -> Array:
    """max_π' P(π' > π) − min_π' P(π > π') for ``policy`` as probabilities [..., n]; result [...], in [0, 1], 0 only at a von Neumann winner.

    By symmetry that is 2 max_y P(y > π) − 1: the best answer against π is a best policy against it.
    """
    result: Array = 2 * win_rates(preferences, policy).max(axis=-1) - 1
    return result


def distance(first: Array, second: Array) -> Array:
    """Total variation between policies given as probabilities [..., n]; result [...], in [0, 1]."""
    result: Array = np.abs(first - second).sum(axis=-1) / 2
    return result


def von_neumann_winner(preferences: Array) -> Array:
    """A von Neumann winner as probabilities [n], from the game's linear program.

    Minimise v over policies π with P π ≤ v. For x = π / v, that is: maximise Σ x with P x ≤ 1 and x ≥ 0, which starts feasible at x = 0 and is bounded,
    because P ≥ 0 with ½ on its diagonal. Solved by the simplex method with Bland's rule, which never cycles; the value v is ½. Where several winners
    exist, it is one of them.

    Raises:
        ArithmeticError: rounding spoilt the solution; its duality gap is checked.
    """
    n = len(preferences)
    rows = np.hstack([preferences, np.eye(n), np.ones((n, 1))])
    gains = np.concatenate([np.ones(n), np.zeros(n)])
    basis = np.arange(n, 2 * n)
    while (improving := np.flatnonzero(gains > _PIVOT)).size:
        column = improving[0]
        steps = np.full(n, np.inf)
        np.divide(rows[:, -1], rows[:, column], out=steps, where=rows[:, column] > _PIVOT)
        ties = np.flatnonzero(steps <= steps.min() + _PIVOT)
        row = ties[np.argmin(basis[ties])]
        rows[row] /= rows[row, column]
        others = np.arange(n) != row
        rows[others] -= np.outer(rows[others, column], rows[row])
        gains = gains - gains[column] * rows[row, :-1]
        basis[row] = column
    solution = np.zeros(2 * n)
    solution[basis] = rows[:, -1].clip(min=0)
    winner: Array = solution[:n] / solution[:n].sum()
    if (gap := float(duality_gap(preferences, winner))) > _GAP:
        raise ArithmeticError(f"the linear program's solution has a duality gap of {gap:.1e}")
    return winner


def sppo_step(preferences: Array, log_policy: Array, eta: npt.ArrayLike) -> Array:
    """One exact round of SPPO (arXiv 2405.00675, the multiplicative-weights update that the regression of eq. 4.4 fits).

    π_{t+1}(y) ∝ π_t(y) exp(η P(y > π_t)), for log-policies [..., n] and η that broadcasts against [...].
    """
    return normalised(log_policy + np.asarray(eta)[..., None] * win_rates(preferences, np.exp(log_policy)))


def sppo_gap_bound(rounds: npt.ArrayLike, eta: npt.ArrayLike, log_start: Array, spread: float = 1.0) -> Array:
    """An upper bound on the duality gap of the average policy of SPPO's first T iterates (Theorem 4.1 of arXiv 2405.00675, with its constants).

    Let π̄ be the mean of π_1 … π_T and L = ‖log π_1‖_∞. The bound is

        gap(π̄)  ≤  2 L / (η T) + η / 4.

    (With win rates known to lie within a ``spread`` of each other, the last term is spread² η / 4.)

    Why: write Z_t = Σ_y π_t(y) exp(η P(y > π_t)) for a round's normaliser. A policy ties with itself, so under π_t the win rate has the mean
    P(π_t > π_t) = ½. It lies in [0, 1], so Hoeffding's lemma gives log Z_t ≤ η/2 + η²/8. Follow any one answer y through T rounds: its log-probability
    is log π_1(y) + η Σ_t P(y > π_t) − Σ_t log Z_t, and no log-probability is above 0. Hence

        Σ_t P(y > π_t)  ≤  T/2 + η T/8 − log π_1(y) / η.

    P(y > ·) is linear in the opponent, so the left side is T P(y > π̄). Divide by T, take the best y, and put it into gap = 2 max_y P(y > π̄) − 1.

    With η of the order 1/√T it falls as 1/√T. At the best η, `best_eta`, it is √(2 L / T); at η = L/√T it is (2 + L/4)/√T. Nothing is said about the
    last iterate: that circles the winner and moves outwards.

    Args:
        rounds: T, the number of iterates averaged, the start among them.
        eta: the learning rate, constant over the rounds.
        log_start: log π_1, [n]; every answer needs a positive probability.
        spread: the largest preference minus the smallest, or more.
    """
    rounds, eta = np.asarray(rounds, dtype=np.float64), np.asarray(eta, dtype=np.float64)
    result: Array = 2 * np.abs(log_start).max() / (eta * rounds) + spread**2 * eta / 4
    return result


def best_eta(rounds: npt.ArrayLike, log_start: Array) -> Array:
    """The η that makes `sppo_gap_bound` least for a horizon of T rounds: √(8 L / T) with L = ‖log π_1‖_∞; then the bound is √(2 L / T)."""
    result: Array = np.sqrt(8 * np.abs(log_start).max() / np.asarray(rounds, dtype=np.float64))
    return result


def bradley_terry_rewards(preferences: Array, policy: Array) -> Array:
    """Rewards [..., n] of the Bradley-Terry model that is most likely when both answers of every pair come from ``policy``, as probabilities [..., n].

    The maximum of Σ_ij π_i π_j P_ij log σ(r_i − r_j), on exact preference probabilities: infinitely many comparisons. At it

        Σ_j π_j (P_ij − σ(r_i − r_j)) = 0    for every i,

    each answer's modelled win rate is its true one. Dividing π_i out keeps that well posed for answers that have all but vanished. Solved by Newton's
    method; step length log(1 + d)/d for a Newton step whose largest difference is d, which converges from anywhere for a logistic loss
    (Sun and Tran-Dinh 2019, arXiv 1703.04599). The rewards have mean 0 under the policy.

    Raises:
        InputError: a preference is exactly 0 or 1, and rewards would have no bound.
        ArithmeticError: no convergence.
    """
    off_diagonal = ~np.eye(len(preferences), dtype=bool)
    if not ((preferences > 0) & (preferences < 1)).all():
        raise InputError(
            "preferences: 0 or 1 has no finite Bradley-Terry reward; allowed are values between: weaken them."
        )
    weights = policy[..., None, :]
    rewards = np.zeros(policy.shape)
    previous = np.inf
    for _ in range(_NEWTON_STEPS):
        modelled = logistic(rewards[..., :, None] - rewards[..., None, :])
        surplus = (weights * (preferences - modelled)).sum(axis=-1)
        slopes = weights * modelled * (1 - modelled) * off_diagonal
        # Rewards are free up to a constant; the policy's weights in every row keep their mean where it is.
        jacobian = slopes.sum(axis=-1)[..., None] * np.eye(len(preferences)) - slopes + weights
        step = np.linalg.solve(jacobian, surplus[..., None])[..., 0]
        largest = np.ptp(step, axis=-1, keepdims=True)
        rewards = rewards + step * np.where(largest > 1e-8, np.log1p(largest) / np.maximum(largest, 1e-8), 1)
        # Close by, a step is the square of the one before: one that is no smaller is rounding.
        reached, previous = largest.max() < 1e-12 or previous <= largest.max() < 1e-3, largest.max()
        if reached:
            result: Array = rewards - (policy * rewards).sum(axis=-1, keepdims=True)
            return result
    raise ArithmeticError(f"Bradley-Terry rewards did not converge in {_NEWTON_STEPS} steps")


def kl_regularised_optimum(log_reference: Array, rewards: Array, beta: npt.ArrayLike) -> Array:
    """The log-policy [..., n] that maximises E[r] − β KL(π ‖ π_ref): π ∝ π_ref exp(r/β) (DPO, arXiv 2305.18290, eq. 4). β → 0 is greedy."""
    return normalised(log_reference + rewards / np.asarray(beta)[..., None])


def dpo_step(preferences: Array, log_policy: Array, beta: npt.ArrayLike, log_reference: Array | None = None) -> Array:
    """One exact round of iterated DPO: pairs from the policy against itself, and the minimiser of the DPO loss (arXiv 2305.18290, eq. 7) on them.

    Over policies without a functional form, DPO's implied reward β log(π/π_ref) is the Bradley-Terry fit to the pairs, so the minimiser is the
    `kl_regularised_optimum` of `bradley_terry_rewards` at π_t.

    A fixed reference: a winner that mixes all answers ties with every one of them, so all rewards are 0 there and the round leads back to the reference.
    The previous iterate: near P = ½ the fit is r(y) = 4 (P(y > π_t) − ½) up to a constant and higher orders, and the round is an SPPO step with
    η = 4/β. What is left over depends on how strong the preferences are, not on β, so a small step does not remove it, and SPPO's bound does not
    carry over. (The squared loss of IPO, arXiv 2310.12036, leaves nothing over: there the optimum is the SPPO step with η = 1/τ.)

    Args:
        preferences: [n, n], no entry exactly 0 or 1.
        log_policy: log π_t, [..., n].
        beta: broadcasts against [...].
        log_reference: a fixed reference, which broadcasts against [..., n]; None takes the previous iterate, π_t.
    """
    rewards = bradley_terry_rewards(preferences, np.exp(log_policy))
    return kl_regularised_optimum(log_policy if log_reference is None else log_reference, rewards, beta)


def play(step: Callable[[Array], Array], log_start: Array, rounds: int) -> Array:
    """The iterates π_1 … π_T as probabilities [T, ..., n], where π_1 is ``log_start`` and each next one is ``step`` of the one before."""
    policies = np.empty((rounds, *log_start.shape))
    log_policy = log_start
    for t in range(rounds):
        policies[t] = np.exp(log_policy)
        if t + 1 < rounds:
            log_policy = step(log_policy)
    return policies


def running_average(policies: Array) -> Array:
    """The average policy after each round: [T, ..., n] to [T, ..., n]."""
    counts = np.arange(1, len(policies) + 1).reshape(-1, *[1] * (policies.ndim - 1))
    result: Array = policies.cumsum(axis=0) / counts
    return result


def log_log_slope(horizons: npt.ArrayLike, gaps: npt.ArrayLike) -> float:
    """The exponent p of the least-squares fit gap ∝ Tᵖ, for horizons and positive gaps [m]."""
    return float(np.polyfit(np.log(horizons), np.log(gaps), 1)[0])
