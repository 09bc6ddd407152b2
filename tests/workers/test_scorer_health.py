"""Health of the signal, the shuffled control, and the quality of a scorer: pure statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from learner.records import Prompt
from workers.scorers.base import Comparison, ScoreResult, logits_of_rewards
from workers.scorers.health import SignalHealth
from workers.scorers.quality import measure
from workers.scorers.shuffle import shuffled

LOGITS = st.integers(2, 6).flatmap(lambda k: arrays(np.float32, (k, k), elements=st.floats(-8, 8, width=32)))


def health(
    logits: NDArray[np.float32], *answers: str, truncated: int = 0, temperature: float = 1.0
) -> dict[str, float]:
    counted = SignalHealth(temperature=temperature)
    texts = answers or tuple(str(index) for index in range(len(logits)))
    counted.add(Comparison(Prompt.of("p", "?"), texts), ScoreResult(logits, truncated_candidates=truncated))
    return counted.as_metrics()


def test_a_circle_of_three_is_intransitive() -> None:
    circle = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=np.float32)
    assert health(circle)["intransitive_share"] == 1
    assert health(-circle)["intransitive_share"] == 1


def test_position_bias_is_what_only_the_order_explains() -> None:
    biased = np.array([[0, 2 + 0.5], [-2 + 0.5, 0]], dtype=np.float32)
    assert health(biased)["position_bias"] == pytest.approx(0.5)
    assert health(biased, temperature=0.5)["position_bias"] == pytest.approx(1.0)


def test_ties_and_identical_answers_are_told_apart() -> None:
    metrics = health(np.zeros((3, 3), dtype=np.float32), "a", "a", "b", truncated=1)
    assert metrics["identical_share"] == pytest.approx(1 / 3)
    assert metrics["tie_share"] == 1
    assert metrics["truncated_candidate_share"] == pytest.approx(1 / 3)


def test_nothing_counted_is_zero_everywhere() -> None:
    assert set(SignalHealth().as_metrics().values()) == {0.0}


def test_logits_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="3 answers"):
        health(np.zeros((2, 2), dtype=np.float32), "a", "b", "c")


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6))
def test_rewards_have_no_position_bias_and_no_circles(rewards: list[float]) -> None:
    metrics = health(logits_of_rewards(rewards))
    assert metrics["position_bias"] == 0
    assert metrics["intransitive_share"] == 0


@given(LOGITS)
def test_shares_lie_between_zero_and_one(logits: NDArray[np.float32]) -> None:
    metrics = health(logits)
    assert metrics["position_bias"] >= 0
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.endswith("_share"))


@given(LOGITS, st.randoms(use_true_random=False))
def test_health_does_not_depend_on_the_order_of_answers(logits: NDArray[np.float32], random: object) -> None:
    order = list(range(len(logits)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert health(logits) == pytest.approx(health(logits[np.ix_(order, order)]))


@given(LOGITS, st.text(min_size=1))
def test_shuffling_permutes_answers_and_is_fixed_by_the_group(logits: NDArray[np.float32], group: str) -> None:
    result = ScoreResult(logits, truncated_candidates=1, truncated_source=True)
    once, again = shuffled(result, group), shuffled(result, group)
    np.testing.assert_array_equal(once.ordered_logits, again.ordered_logits)
    assert sorted(once.ordered_logits.ravel()) == sorted(logits.ravel())
    assert sorted(np.diag(once.ordered_logits)) == sorted(np.diag(logits))
    assert (once.truncated_candidates, once.truncated_source) == (1, True)


def test_shuffling_leaves_no_signal() -> None:
    result = ScoreResult(logits_of_rewards([0.0, 1.0, 2.0, 3.0, 4.0]))
    best = [int(shuffled(result, f"job/r0/{index}").ordered_logits.sum(axis=1).argmax()) for index in range(2000)]
    assert np.bincount(best, minlength=5) == pytest.approx(400, abs=80)


def test_quality_of_known_predictions() -> None:
    quality = measure([2.0, 2.0, -1.0, 0.0], [-2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.5])
    assert quality.accuracy == pytest.approx(2 / 3)
    assert quality.ties == 1
    assert quality.position_bias == pytest.approx((0 + 1.5 + 0 + 0) / 4)
    assert quality.flip_share == pytest.approx(1 / 4)


def test_labels_that_predictions_state_exactly_have_no_calibration_error() -> None:
    probability = np.linspace(0.01, 0.99, 99)
    logit = np.log(probability / (1 - probability))
    quality = measure(logit, -logit, 1 - probability)
    assert quality.calibration_error == pytest.approx(0, abs=1e-9)
    assert sum(row.pairs for row in quality.calibration) == 99


@given(st.lists(st.tuples(st.floats(-900, 900), st.floats(-900, 900), st.floats(0, 1)), min_size=1, max_size=40))
def test_quality_is_finite_and_does_not_depend_on_which_answer_is_called_a(
    rows: list[tuple[float, float, float]],
) -> None:
    ab, ba, label = (list(column) for column in zip(*rows, strict=True))
    one, other = measure(ab, ba, label), measure(ba, ab, [1 - value for value in label])
    assert np.isfinite(one.log_loss) and 0 <= one.calibration_error <= 1
    assert one.log_loss == pytest.approx(other.log_loss)
    assert one.position_bias == pytest.approx(other.position_bias)
    assert one.calibration_error == pytest.approx(other.calibration_error, abs=1e-9)
    if one.accuracy is not None and one.ties == other.ties:
        assert one.accuracy == pytest.approx(other.accuracy)
        assert one.accuracy_low is not None and one.accuracy_high is not None
        assert one.accuracy_low - 1e-12 <= one.accuracy <= one.accuracy_high + 1e-12
