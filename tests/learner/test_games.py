"""The theory of self-play preference optimisation, held against games whose solutions are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import games
from learner.errors import InputError
from learner.preference import Array, logistic

ROCK_PAPER_SCISSORS = games.weighted_rock_paper_scissors((0.9, 0.3, 0.5))
FIVE_MIXED = games.random_preferences(5, 0.9, np.random.default_rng(2))
THREE_MIXED = games.random_preferences(5, 0.9, np.random.default_rng(3))
TRANSITIVE = games.bradley_terry_preferences(np.linspace(1, -1, 5))
INTRANSITIVE = pytest.mark.parametrize(
    "preferences", [ROCK_PAPER_SCISSORS, THREE_MIXED, FIVE_MIXED], ids=["rock-paper-scissors", "three", "five"]
)
LOPSIDED = np.log([0.98, 0.01, 0.01])
BETAS = np.geomspace(0.02, 50, 31)


@st.composite
def antisymmetric(draw: st.DrawFn, edge: float = 1.0) -> Array:
    """Preferences of 1 to 5 answers; ties and, with ``edge`` 1, certain preferences among them."""
    n = draw(st.integers(1, 5))
    values = st.one_of(st.sampled_from([-edge, 0.0, edge]), st.floats(-edge, edge))
    upper = np.zeros((n, n))
    upper[np.triu_indices(n, 1)] = draw(st.lists(values, min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2))
    return games.checked_preferences((1 + upper - upper.T) / 2)


@st.composite
def games_and_policies(draw: st.DrawFn, edge: float = 1.0) -> tuple[Array, Array]:
    """Preferences, and a log-policy over their answers that gives each a probability of at least some 1e-5."""
    preferences = draw(antisymmetric(edge))
    scores = draw(st.lists(st.floats(-5, 5), min_size=len(preferences), max_size=len(preferences)))
    return preferences, games.normalised(np.array(scores))


def population_dpo_loss(preferences: Array, policy: Array, log_ratios: Array, beta: float) -> float:
    """The DPO loss on pairs from ``policy`` (probabilities), written out: Σ_ij π_i π_j P_ij (−log σ(β (h_i − h_j)))."""
    margins = beta * (log_ratios[:, None] - log_ratios[None, :])
    return float((np.outer(policy, policy) * preferences * np.logaddexp(0, -margins)).sum())


def gradient(preferences: Array, policy: Array, log_ratios: Array, beta: float) -> Array:
    """Of the loss in the log-ratios, by central differences."""
    found = np.empty(len(log_ratios))
    for i, nudge in enumerate(1e-5 * np.eye(len(log_ratios))):
        above = population_dpo_loss(preferences, policy, log_ratios + nudge, beta)
        found[i] = (above - population_dpo_loss(preferences, policy, log_ratios - nudge, beta)) / 2e-5
    return found


def sppo_averages(preferences: Array, horizons: Array, eta: Array) -> Array:
    """SPPO's average policy from the uniform start at each horizon, [m, n], each played with its own η."""
    start = np.broadcast_to(games.uniform(len(preferences)), (len(horizons), len(preferences)))
    policies = games.play(lambda policy: games.sppo_step(preferences, policy, eta), start, int(max(horizons)))
    return np.array([policies[:t, row].mean(axis=0) for row, t in enumerate(horizons)])


# The games and their solutions.


@given(st.tuples(*[st.floats(0.01, 1)] * 3))
def test_rock_paper_scissors_winner_takes_the_closed_form(stakes: tuple[float, float, float]) -> None:
    expected = np.array(stakes[::-1]) / sum(stakes)
    assert games.von_neumann_winner(games.weighted_rock_paper_scissors(stakes)) == pytest.approx(expected, abs=1e-9)


@given(antisymmetric())
def test_every_game_has_a_winner_that_no_answer_beats_more_than_half_the_time(preferences: Array) -> None:
    winner = games.von_neumann_winner(preferences)
    assert (winner >= 0).all()
    assert winner.sum() == pytest.approx(1)
    assert (preferences @ winner).max() <= 0.5 + 1e-9


def test_a_large_game_has_its_winner_found() -> None:
    preferences = games.random_preferences(40, 1.0, np.random.default_rng(0))
    winner = games.von_neumann_winner(preferences)
    assert games.duality_gap(preferences, winner) < 1e-9
    assert (winner > 1e-6).sum() % 2 == 1  # without ties a tournament's optimal support is odd


def test_the_winner_of_transitive_preferences_is_the_best_answer() -> None:
    assert games.von_neumann_winner(TRANSITIVE) == pytest.approx([1, 0, 0, 0, 0])


@given(games_and_policies())
def test_the_gap_is_what_the_best_policy_wins_less_what_the_worst_opponent_leaves(game: tuple[Array, Array]) -> None:
    preferences, log_policy = game
    policy = np.exp(log_policy)
    against = (preferences * policy[None, :]).sum(axis=1)  # a linear function is extreme at a single answer
    own = (preferences * policy[:, None]).sum(axis=0)
    assert games.duality_gap(preferences, policy) == pytest.approx(against.max() - own.min(), abs=1e-12)
    assert games.duality_gap(preferences, policy) >= -1e-12


@pytest.mark.parametrize(
    "matrix", [[[0.5, 0.7], [0.4, 0.5]], [[0.5, 1.2], [-0.2, 0.5]], [[0.5, 0.5]], [[0.6]], [], [[np.nan]]]
)
def test_what_is_no_preference_matrix_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(InputError, match="preferences"):
        games.checked_preferences(matrix)


# SPPO.


@pytest.mark.parametrize(
    "preferences",
    [ROCK_PAPER_SCISSORS, THREE_MIXED, FIVE_MIXED, TRANSITIVE],
    ids=["rock-paper-scissors", "three", "five", "transitive"],
)
def test_sppo_average_approaches_the_winner_at_the_rate_of_the_bound(preferences: Array) -> None:
    horizons = np.unique(np.geomspace(16, 8192, 37).round().astype(int))
    start = games.uniform(len(preferences))
    eta = games.best_eta(horizons, start)
    averages = sppo_averages(preferences, horizons, eta)
    gaps = games.duality_gap(preferences, averages)
    assert (gaps <= games.sppo_gap_bound(horizons, eta, start)).all()
    assert games.log_log_slope(horizons, gaps) <= -0.48
    winner = games.von_neumann_winner(preferences)
    assert games.distance(averages[-1], winner) < 0.03 < games.distance(np.exp(start), winner)


def test_sppo_average_stays_under_the_bound_at_the_eta_of_the_paper_too() -> None:
    horizons = np.unique(np.geomspace(16, 4096, 25).round().astype(int))
    size = np.log(3)
    eta = size / np.sqrt(horizons)
    gaps = games.duality_gap(ROCK_PAPER_SCISSORS, sppo_averages(ROCK_PAPER_SCISSORS, horizons, eta))
    assert (gaps <= (2 + size / 4) / np.sqrt(horizons)).all()
    assert games.log_log_slope(horizons, gaps) <= -0.45


def test_the_bound_takes_its_closed_forms() -> None:
    start = np.log([0.5, 0.25, 0.25])
    size = np.log(4)
    assert games.sppo_gap_bound(100, games.best_eta(100, start), start) == pytest.approx(np.sqrt(2 * size / 100))
    assert games.sppo_gap_bound(100, size / 10, start) == pytest.approx((2 + size / 4) / 10)
    assert games.sppo_gap_bound(100, 0.3, start, spread=0.5) == pytest.approx(size / 15 + 0.3 / 16)


@settings(max_examples=60)
@given(games_and_policies(), st.floats(0.01, 20))
def test_sppo_average_is_under_the_bound_after_every_round_of_any_game(game: tuple[Array, Array], eta: float) -> None:
    preferences, start = game
    policies = games.play(lambda policy: games.sppo_step(preferences, policy, eta), start, 60)
    gaps = games.duality_gap(preferences, games.running_average(policies))
    spread = float(np.ptp(preferences))
    assert (gaps <= games.sppo_gap_bound(np.arange(1, 61), eta, start, spread) + 1e-9).all()


@given(games_and_policies(), st.floats(0.01, 20))
def test_half_of_eta_stands_for_the_log_partition_to_second_order(game: tuple[Array, Array], eta: float) -> None:
    preferences, log_policy = game
    log_ratio = games.sppo_step(preferences, log_policy, eta) - log_policy
    log_partition = eta * (preferences @ np.exp(log_policy)) - log_ratio
    assert np.ptp(log_partition) < 1e-9  # one constant for all answers
    assert eta / 2 - 1e-9 <= log_partition.min() <= log_partition.max() <= eta / 2 + eta**2 / 8 + 1e-9


def test_sppo_at_the_published_eta_stays_finite_and_follows_the_best_response() -> None:
    policies = games.play(lambda policy: games.sppo_step(ROCK_PAPER_SCISSORS, policy, 1000), games.uniform(3), 50)
    assert np.isfinite(policies).all()
    assert policies[1] == pytest.approx([1, 0, 0])  # what wins most against the uniform start
    assert games.duality_gap(ROCK_PAPER_SCISSORS, policies[:4].mean(axis=0)) > 0.05


def test_sppo_last_iterate_moves_away_from_a_mixed_winner_in_every_round() -> None:
    winner = games.von_neumann_winner(ROCK_PAPER_SCISSORS)
    policies = games.play(lambda policy: games.sppo_step(ROCK_PAPER_SCISSORS, policy, 0.1), games.uniform(3), 2000)
    divergence = (winner * np.log(winner / policies)).sum(axis=1)
    assert (np.diff(divergence) > 0).all()
    assert games.duality_gap(ROCK_PAPER_SCISSORS, policies[-500:]).min() > 0.03
    assert games.duality_gap(ROCK_PAPER_SCISSORS, policies.mean(axis=0)) < 0.01


# A reward that is fitted once.


@given(games_and_policies(0.99))
def test_the_bradley_terry_fit_models_every_answers_true_win_rate(game: tuple[Array, Array]) -> None:
    preferences, log_policy = game
    policy = np.exp(log_policy)
    rewards = games.bradley_terry_rewards(preferences, policy)
    modelled = logistic(rewards[:, None] - rewards[None, :]) @ policy
    assert modelled == pytest.approx(preferences @ policy, abs=1e-9)


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=5), st.integers(0, 1000))
def test_transitive_rewards_are_recovered_from_pairs_of_any_policy(rewards: list[float], seed: int) -> None:
    policy = np.random.default_rng(seed).dirichlet(np.ones(len(rewards)))
    found = games.bradley_terry_rewards(games.bradley_terry_preferences(rewards), policy)
    assert found == pytest.approx(rewards - policy @ rewards, abs=1e-7)


def test_rewards_are_found_when_an_answer_has_all_but_vanished() -> None:
    preferences = games.bradley_terry_preferences([0, 1, 2])
    rewards = games.bradley_terry_rewards(preferences, np.array([1 - 1e-200, 1e-200, 0]))
    assert rewards == pytest.approx([0, 1, 2])


def test_near_certain_preferences_in_circles_are_fitted_from_lopsided_policies() -> None:
    for seed in range(100):
        generator = np.random.default_rng(seed)
        signs = generator.choice([-1, 1], (5, 5)) * (1 - 10 ** -generator.uniform(0.5, 7, (5, 5)))
        preferences = games.checked_preferences((1 + np.triu(signs, 1) - np.triu(signs, 1).T) / 2)
        policy = np.exp(games.normalised(np.log(generator.dirichlet(np.full(5, 0.2)) + 1e-12)))
        rewards = games.bradley_terry_rewards(preferences, policy)
        assert logistic(rewards[:, None] - rewards[None, :]) @ policy == pytest.approx(preferences @ policy, abs=1e-12)


def test_a_certain_preference_has_no_finite_reward() -> None:
    with pytest.raises(InputError, match="no finite Bradley-Terry reward"):
        games.bradley_terry_rewards(np.array([[0.5, 1], [0, 0.5]]), np.array([0.5, 0.5]))


@INTRANSITIVE
def test_a_reward_fitted_once_keeps_its_distance_from_a_mixed_winner_at_every_beta(preferences: Array) -> None:
    start = games.uniform(len(preferences))
    rewards = games.bradley_terry_rewards(preferences, np.exp(start))
    policies = np.exp(games.kl_regularised_optimum(start, rewards, BETAS))
    horizon = np.array([4096])
    sppo = games.duality_gap(preferences, sppo_averages(preferences, horizon, games.best_eta(horizon, start)))
    assert games.duality_gap(preferences, policies).min() > max(0.06, 5 * sppo[0])
    assert games.duality_gap(preferences, np.eye(len(preferences))[rewards.argmax()]) > 0.2  # greedy


def test_a_reward_fitted_once_is_enough_for_transitive_preferences() -> None:
    start = games.uniform(5)
    rewards = games.bradley_terry_rewards(TRANSITIVE, np.exp(start))
    policy = np.exp(games.kl_regularised_optimum(start, rewards, 0.01))
    assert games.duality_gap(TRANSITIVE, policy) < 1e-9


# Iterated DPO.


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_a_dpo_round_minimises_the_dpo_loss_on_the_policys_own_pairs(beta: float) -> None:
    log_policy, log_reference = games.normalised(np.arange(5) / 3), games.normalised(np.arange(5)[::-1] / 2)
    log_ratios = games.dpo_step(FIVE_MIXED, log_policy, beta, log_reference) - log_reference
    assert gradient(FIVE_MIXED, np.exp(log_policy), log_ratios, beta) == pytest.approx(np.zeros(5), abs=1e-9)
    assert np.abs(gradient(FIVE_MIXED, np.exp(log_policy), 0 * log_ratios, beta)).max() > 1e-3


@INTRANSITIVE
def test_dpo_against_a_fixed_reference_does_not_approach_a_mixed_winner_at_any_beta(preferences: Array) -> None:
    start = games.uniform(len(preferences))
    starts = np.broadcast_to(start, (len(BETAS), len(start)))
    policies = games.play(lambda policy: games.dpo_step(preferences, policy, BETAS, start), starts, 400)
    averages = games.duality_gap(preferences, games.running_average(policies))
    assert games.duality_gap(preferences, policies[-100:]).mean(axis=0).min() > 0.05
    assert averages[-1].min() > 0.05
    assert averages[-1].min() > 0.9 * averages[199].min()  # twice the rounds bring it no nearer


def test_dpo_against_a_fixed_reference_sends_the_winner_back_to_the_reference() -> None:
    winner = np.log(games.von_neumann_winner(ROCK_PAPER_SCISSORS))
    back = games.dpo_step(ROCK_PAPER_SCISSORS, winner, 0.1, LOPSIDED)
    assert back == pytest.approx(LOPSIDED, abs=1e-9)
    assert games.dpo_step(ROCK_PAPER_SCISSORS, winner, 0.1) == pytest.approx(winner, abs=1e-9)
    assert games.sppo_step(ROCK_PAPER_SCISSORS, winner, 10) == pytest.approx(winner, abs=1e-9)


@given(games_and_policies(0.99), st.floats(0.1, 5))
def test_the_first_gradient_of_on_policy_dpo_points_along_the_sppo_step(game: tuple[Array, Array], beta: float) -> None:
    preferences, log_policy = game
    policy = np.exp(log_policy)
    natural = -gradient(preferences, policy, np.zeros(len(policy)), beta) / policy  # of the softmax family
    assert games.normalised(log_policy + natural) == pytest.approx(
        games.sppo_step(preferences, log_policy, beta), abs=1e-3
    )


def test_the_ipo_optimum_on_the_policys_own_pairs_is_the_sppo_step() -> None:
    log_policy, tau = games.normalised(np.arange(5) / 3), 0.2
    first, second = (index.ravel() for index in np.indices((5, 5)))
    design = np.eye(5)[first] - np.eye(5)[second]
    weights = np.sqrt(np.exp(log_policy[first] + log_policy[second]))
    # E over labels of (D − ±1/(2τ))² is, up to a constant, (D − (2 P − 1)/(2τ))².
    target = (2 * FIVE_MIXED[first, second] - 1) / (2 * tau)
    log_ratios = np.linalg.lstsq(design * weights[:, None], target * weights, rcond=None)[0]
    expected = games.sppo_step(FIVE_MIXED, log_policy, 1 / tau)
    assert games.normalised(log_policy + log_ratios) == pytest.approx(expected, abs=1e-9)


def on_policy_runs(strength: float, eta: float, start: Array, rounds: int) -> tuple[Array, Array, Array]:
    """The game with P − ½ scaled by ``strength``; in it DPO against the previous iterate, β = 4/η, and SPPO with η."""
    preferences = games.weakened(ROCK_PAPER_SCISSORS, strength)
    dpo = games.play(lambda policy: games.dpo_step(preferences, policy, 4 / eta), start, rounds)
    return preferences, dpo, games.play(lambda policy: games.sppo_step(preferences, policy, eta), start, rounds)


def test_on_policy_dpo_follows_sppo_to_second_order_in_the_strength_of_preferences() -> None:
    distances = []
    for strength in (0.1, 0.2, 0.4):
        _, dpo, sppo = on_policy_runs(strength, 0.2 / strength, games.uniform(3), 120)
        assert games.distance(sppo, sppo[0]).max() > 0.25  # both have gone a long way
        distances.append(games.distance(dpo, sppo).max())
    assert distances[0] < 2e-4
    assert np.diff(np.log2(distances)) == pytest.approx([2, 2], abs=0.1)


def test_a_smaller_step_does_not_bring_on_policy_dpo_nearer_to_sppo() -> None:
    distances = []
    for eta in (0.2, 0.05):
        _, dpo, sppo = on_policy_runs(1.0, eta, games.uniform(3), round(24 / eta))
        distances.append(games.distance(dpo, sppo).max())
    assert distances == pytest.approx([0.0117, 0.0117], abs=0.001)


def test_on_policy_dpo_average_misses_the_winner_under_strong_preferences_and_not_under_weak_ones() -> None:
    shares = []
    for strength in (1.0, 0.1):
        preferences, dpo, sppo = on_policy_runs(strength, 0.4 / strength, LOPSIDED, 2000)
        late = [games.duality_gap(preferences, games.running_average(run))[1000:].mean() for run in (dpo, sppo)]
        shares.append(late[0] / late[1])
    assert shares[0] > 2.5
    assert shares[1] == pytest.approx(1, abs=0.1)
