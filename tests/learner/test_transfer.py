"""The averages of continual learning against matrices that were worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import InputError
from learner.transfer import Row, TransferMatrix

DOMAINS = ("a", "b", "c")
ROWS: tuple[Row, ...] = (
    (0.5, 0.4, 0.3),
    (0.8, 0.5, 0.2),
    (0.9, 0.7, 0.6),
    (0.6, 0.8, 0.9),
)


def test_a_whole_matrix_gives_the_averages_worked_out_by_hand() -> None:
    matrix = TransferMatrix(DOMAINS, ROWS)
    assert matrix.learned == 3
    assert matrix.average() == pytest.approx((0.6 + 0.8 + 0.9) / 3)
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.6) + (0.7 - 0.8)) / 2)
    assert matrix.backward_transfer() == pytest.approx(((0.6 - 0.8) + (0.8 - 0.7)) / 2)
    assert matrix.forward_transfer() == pytest.approx(((0.5 - 0.4) + (0.6 - 0.3)) / 2)


def test_a_running_job_is_measured_over_the_domains_learned_so_far() -> None:
    matrix = TransferMatrix(DOMAINS, ROWS[:3])
    assert matrix.average() == pytest.approx((0.9 + 0.7) / 2)
    assert matrix.forgetting() == pytest.approx(0.8 - 0.9)
    assert matrix.backward_transfer() == pytest.approx(0.9 - 0.8)
    assert matrix.forward_transfer() == pytest.approx(0.5 - 0.4)


def test_one_domain_has_an_average_and_nothing_to_forget_or_transfer() -> None:
    matrix = TransferMatrix(DOMAINS, ROWS[:2])
    assert matrix.average() == pytest.approx(0.8)
    assert (matrix.forgetting(), matrix.backward_transfer(), matrix.forward_transfer()) == (None, None, None)
    assert TransferMatrix(DOMAINS, ROWS[:1]).average() is None


def test_an_unknown_start_leaves_only_forward_transfer_undefined() -> None:
    known, unknown = TransferMatrix(DOMAINS, ROWS), TransferMatrix(DOMAINS, ((None,) * 3, *ROWS[1:]))
    assert unknown.forward_transfer() is None
    assert unknown.average() == known.average()
    assert unknown.forgetting() == known.forgetting()
    assert unknown.backward_transfer() == known.backward_transfer()


def test_a_start_policy_that_was_best_does_not_count_as_forgotten() -> None:
    matrix = TransferMatrix(("a", "b"), ((1.0, 1.0), (0.6, 0.2), (0.6, 0.7)))
    assert matrix.forgetting() == 0


def test_a_missing_win_rate_is_never_taken_for_zero() -> None:
    matrix = TransferMatrix(("a", "b"), ((0.5, 0.5), (None, 0.5), (0.7, 0.8)))
    assert matrix.average() == pytest.approx(0.75)
    assert matrix.forgetting() is None
    assert matrix.backward_transfer() is None
    assert matrix.forward_transfer() == 0
    assert TransferMatrix(("a", "b"), ((0.5, 0.5), (0.6, 0.5), (None, 0.8))).average() is None


def test_forgetting_is_taken_from_what_was_measured_of_later_domains() -> None:
    matrix = TransferMatrix(DOMAINS, (ROWS[0], (0.8, None, None), (0.9, 0.7, None), ROWS[3]))
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.6) + (0.7 - 0.8)) / 2)
    assert matrix.forward_transfer() is None


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.tuples(*[st.floats(0, 1)] * n), min_size=n + 1, max_size=n + 1)))
def test_forgetting_is_never_less_than_what_backward_transfer_loses(rows: list[Row]) -> None:
    matrix = TransferMatrix(tuple(f"d{d}" for d in range(len(rows) - 1)), tuple(rows))
    forgetting, backward = matrix.forgetting(), matrix.backward_transfer()
    if forgetting is None or backward is None:
        assert matrix.learned == 1
    else:
        assert forgetting >= -backward - 1e-12


@pytest.mark.parametrize(
    ("domains", "rows", "message"),
    [
        ((), ((),), "at least one"),
        (("a", "a"), ((0.5, 0.5),), "none twice"),
        (("a",), (), "start policy's row"),
        (("a",), ((0.5,), (0.5,), (0.5,)), "at most one a domain"),
        (("a", "b"), ((0.5,),), "write None"),
        (("a",), ((1.5,),), "between 0 and 1"),
        (("a",), ((float("nan"),),), "between 0 and 1"),
    ],
)
def test_matrices_of_a_wrong_shape_or_value_are_refused(
    domains: tuple[str, ...], rows: tuple[Row, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TransferMatrix(domains, rows)
