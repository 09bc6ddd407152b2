"""Win matrices against the published numbers, and the selection of answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import PairingConfig
from learner.errors import InputError
from learner.objectives import build_objective
from learner.objectives.parameters import (
    DpoParameters,
    NashMdParameters,
    ObjectiveParameters,
    SDpoParameters,
    SppoParameters,
)
from learner.pairing import select_answers, skip_reason
from learner.preference import (
    Probabilities,
    effective_logits,
    logistic,
    usable_answers,
    win_matrix,
    win_probabilities,
)
from learner.records import SkipReason
from tests.learner.builders import answer, bradley_terry, group

LOGITS = [[0, 1, 2], [-0.8, 0, 0.5], [-1.6, -0.3, 0]]
PAIRING = PairingConfig()


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ("released", [0.7857894824, 0.4541174972, 0.2600930205]),
        ("paper", [0.6896994792, 0.4625793858, 0.3477211349]),
        ("raw", [0.7039518855, 0.4774949500, 0.3645130327]),
    ],
)
def test_win_probabilities_take_the_published_check_values(probabilities: Probabilities, expected: list[float]) -> None:
    assert win_probabilities(win_matrix(LOGITS, 1.0, probabilities)) == pytest.approx(expected, abs=1e-9)


def test_released_probabilities_of_five_scores_take_the_published_values() -> None:
    scores = [1, 0.5, 0, -0.5, -1]
    found = win_probabilities(win_matrix(np.array(bradley_terry(scores)) / 2, 1.0, "released"))
    expected = [0.7103778928, 0.6097266110, 0.5, 0.3902733890, 0.2896221072]
    assert found == pytest.approx(expected, abs=1e-9)


def test_half_the_temperature_doubles_the_logit() -> None:
    assert win_matrix(LOGITS, 0.5)[0, 1] == pytest.approx(0.8581489351, abs=1e-9)
    assert win_matrix(LOGITS, 1.0, "raw")[0, 1] == pytest.approx(0.7310585786, abs=1e-9)


@given(
    st.integers(2, 6).flatmap(
        lambda k: st.lists(st.lists(st.floats(-50, 50), min_size=k, max_size=k), min_size=k, max_size=k)
    ),
    st.sampled_from(["paper", "released"]),
    st.floats(0.1, 5),
)
def test_win_matrices_are_complementary_and_their_means_average_one_half(
    logits: list[list[float]], probabilities: Probabilities, temperature: float
) -> None:
    matrix = win_matrix(logits, temperature, probabilities)
    assert np.allclose(matrix + matrix.T, 1)
    assert (np.diag(matrix) == 0.5).all()
    assert win_probabilities(matrix).mean() == pytest.approx(0.5)


def test_matrices_that_are_not_square_or_finite_are_refused() -> None:
    for wrong in ([[0, 1]], [[0, np.nan], [0, 0]]):
        with pytest.raises(InputError, match="square matrix of finite"):
            win_matrix(wrong)
    with pytest.raises(InputError, match="temperature"):
        win_matrix(LOGITS, 0.0)


def test_the_logistic_function_never_overflows() -> None:
    assert logistic([-1e5, 0, 1e5]).tolist() == [0, 0.5, 1]


MIXED = group(
    [answer([4]), answer([5], truncated=True), answer([6]), answer([7], truncated=True)], bradley_terry([1, 9, 0, 2])
)


def test_best_and_worst_are_selected_with_what_is_known_about_them_among_all() -> None:
    selection = select_answers(MIXED, DpoParameters(), PAIRING, "keep", 2.0)
    assert selection.indices == (1, 2)
    matrix = win_matrix(MIXED.ordered_logits, 2.0)
    assert selection.win_probabilities == pytest.approx(win_probabilities(matrix)[[1, 2]])
    assert selection.pair_logits == pytest.approx(np.array([[0, 4.5], [-4.5, 0]]))
    assert selection.scores == pytest.approx([(36 - 12) / 8, -12 / 8])


def test_dropping_cut_answers_leaves_the_others_and_penalising_puts_them_last() -> None:
    assert usable_answers(MIXED, "drop") == (0, 2)
    assert select_answers(MIXED, DpoParameters(), PAIRING, "drop").indices == (0, 2)
    everything = SppoParameters(answers="all")
    assert select_answers(MIXED, everything, PAIRING, "penalise").indices == (0, 2, 1, 3)
    penalised = win_matrix(effective_logits(MIXED, "penalise"))
    assert penalised[0, 1] > 1 - 1e-12
    assert penalised[1, 3] == win_matrix(MIXED.ordered_logits)[1, 3]


def test_all_answers_are_kept_best_first_for_sppo() -> None:
    selection = select_answers(MIXED, SppoParameters(answers="all", probabilities="released"), PAIRING)
    assert selection.indices == (1, 3, 0, 2)
    assert (np.diff(selection.win_probabilities) < 0).all()
    assert logistic(selection.pair_logits).mean(axis=1) == pytest.approx(selection.win_probabilities)


@pytest.mark.parametrize(
    ("answers", "rewards", "changes", "truncated", "expected"),
    [
        ([answer([4]), answer([4])], [0, 0], {}, "keep", SkipReason.IDENTICAL),
        ([answer([4]), answer([4])], [1, 0], {"identical": "keep"}, "keep", None),
        ([answer([4]), answer([5])], [0, 0], {}, "keep", SkipReason.TIE),
        ([answer([4]), answer([5])], [0, 0], {"ties": "keep"}, "keep", None),
        ([answer([4]), answer([5])], [0.3, 0], {"tie_margin": 0.1}, "keep", SkipReason.TIE),
        ([answer([4]), answer([5])], [0.3, 0], {}, "keep", None),
        ([answer([4]), answer([5], truncated=True)], [1, 0], {}, "drop", SkipReason.TRUNCATED),
        ([answer([4]), answer([5], truncated=True)], [0, 0], {}, "penalise", None),
        ([answer([4]), answer([4], truncated=True), answer([4])], [0, 5, 0], {}, "drop", SkipReason.IDENTICAL),
    ],
)
def test_groups_are_skipped_for_a_reason(
    answers: list, rewards: list[float], changes: dict, truncated: str, expected: SkipReason | None
) -> None:
    scored = group(answers, bradley_terry(rewards))
    assert skip_reason(scored, PairingConfig(**changes), truncated) == expected  # type: ignore[arg-type]


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=6))
def test_a_selection_is_best_first_and_names_two_answers(rewards: list[float]) -> None:
    scored = group([answer([4, i]) for i in range(len(rewards))], bradley_terry(rewards))
    selection = select_answers(scored, DpoParameters(), PAIRING)
    best, worst = selection.indices
    assert best != worst
    assert rewards[best] == pytest.approx(max(rewards), abs=1e-9)
    assert rewards[worst] == pytest.approx(min(rewards), abs=1e-9)
    assert selection.win_probabilities[0] >= selection.win_probabilities[1]


FOUR = group([answer([4 + i]) for i in range(4)], bradley_terry([1, 9, 0, 2]))


def records(rule: str, objective: ObjectiveParameters | None = None, **changes: Any) -> list[tuple[int, ...]]:
    """The records of the four answers, whose order from best to worst is 1, 3, 0, 2, by the answers' own numbers."""
    pairing = PairingConfig.model_validate({"rule": rule, **changes})
    selection = select_answers(
        FOUR, objective or DpoParameters(), pairing, log_ratios=[0.0] * 4 if rule == "did" else None
    )
    return [tuple(selection.indices[place] for place in record) for record in selection.records]


def test_every_rule_makes_the_records_that_it_says() -> None:
    assert records("auto") == records("best-worst") == [(1, 2)]
    assert records("all-pairs") == [(1, 3), (1, 0), (1, 2), (3, 0), (3, 2), (0, 2)]
    assert records("all-pairs", tie_margin=0.4) == [(1, 3), (1, 0), (1, 2)]
    assert records("random-pair")[0] in records("all-pairs")
    assert records("auto", SDpoParameters()) == records("top-vs-rest", SDpoParameters()) == [(1, 3, 0, 2)]
    assert records("best-worst", SDpoParameters()) == [(1, 2)]
    assert records("auto", SppoParameters(answers="all")) == [(1, 3, 0, 2)]
    assert records("did")[0][0] == 1


def test_a_random_pair_depends_on_the_group_alone() -> None:
    drawn = set()
    for index in range(30):
        scored = group([answer([4 + i]) for i in range(4)], bradley_terry([1, 9, 0, 2]), index)
        first, again = (select_answers(scored, DpoParameters(), PairingConfig(rule="random-pair")) for _ in range(2))
        assert first.indices == again.indices
        drawn.add(first.indices)
    assert len(drawn) > 3


def test_all_pairs_follow_each_pairs_own_preference_where_preferences_go_in_circles() -> None:
    circle = [[0, 3, -2], [-3, 0, 2], [2, -2, 0]]
    scored = group([answer([4]), answer([5]), answer([6])], circle)
    selection = select_answers(scored, DpoParameters(), PairingConfig(rule="all-pairs"))
    found = {tuple(selection.indices[place] for place in record) for record in selection.records}
    assert found == {(0, 1), (1, 2), (2, 0)}
    for better, worse in selection.records:
        assert selection.pair_logits[better, worse] > 0


def test_did_draws_what_the_policy_has_turned_to_more_rarely() -> None:
    drawn = []
    for index in range(300):
        scored = group([answer([4 + i]) for i in range(3)], bradley_terry([5, 1, 0]), index)
        selection = select_answers(
            scored, DpoParameters(beta=0.5), PairingConfig(rule="did"), log_ratios=[3.0, 1.0, 0.0]
        )
        drawn.append(selection.indices[-1])
    # weights exp(-1.5) and 1
    assert drawn.count(1) / len(drawn) == pytest.approx(np.exp(-1.5) / (1 + np.exp(-1.5)), abs=0.06)


@pytest.mark.parametrize(
    ("rule", "objective"),
    [("all", DpoParameters()), ("top-vs-rest", DpoParameters()), ("best-worst", SppoParameters(answers="all"))],
)
def test_rules_whose_records_an_objective_cannot_learn_from_are_refused(
    rule: str, objective: ObjectiveParameters
) -> None:
    with pytest.raises(InputError, match=f"pairing.rule: {rule} does not go with objective.kind: {objective.kind}"):
        records(rule, objective)


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        ({"kind": "dpo", "beta": 0.3}, 0.3),
        ({"kind": "dpo", "beta": 5.0, "length_normalized": True}, 0.1),
        ({"kind": "ipo", "tau": 0.4}, 0.4),
        ({"kind": "ipo", "tau": 4.0, "length_normalized": True}, 0.1),
        ({"kind": "simpo", "beta": 10.0}, 0.1),
        ({"kind": "alpha-dpo"}, 0.1),
        ({"kind": "alpha-dpo", "beta": 0.2, "length_normalized": False}, 0.2),
        ({"kind": "wpo", "inner": {"kind": "ipo", "tau": 0.4}}, 0.4),
        ({"kind": "chase", "inner": {"kind": "dr-dpo", "inner": {"kind": "simpo"}}}, 0.1),
    ],
    ids=str,
)
def test_margins_summed_over_tokens_are_scaled_by_a_beta_made_for_sums(objective: dict[str, Any], beta: float) -> None:
    parameters = build_objective(objective).parameters
    assert parameters.summed_beta == beta


def test_a_given_pair_keeps_its_order_for_an_objective_that_asks_for_it() -> None:
    scored = group([answer([4]), answer([5])], bradley_terry([0, 2]))
    assert select_answers(scored, DpoParameters(), PAIRING).indices == (1, 0)
    selection = select_answers(scored, NashMdParameters(), PAIRING)
    assert (selection.indices, selection.records) == ((0, 1), ((0, 1),))
    assert selection.pair_logits[0, 1] == -2
    assert selection.win_probabilities[0] < 0.5
    with pytest.raises(InputError, match="nash-md, which learns from pairs in the order of the file; use auto"):
        select_answers(scored, NashMdParameters(), PairingConfig(rule="best-worst"))
