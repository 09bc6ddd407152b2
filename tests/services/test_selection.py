"""Best version and stopping rules."""

from __future__ import annotations

from services.jobs.selection import Evaluation, best_version, stop_reason


def rates(*values: float) -> list[Evaluation]:
    return [Evaluation(version, value) for version, value in enumerate(values)]


def test_the_best_version_is_the_one_with_the_highest_win_rate_not_the_newest() -> None:
    assert best_version(rates(0.5, 0.7, 0.9, 0.6)) == 2


def test_of_equal_versions_the_earlier_one_is_taken() -> None:
    assert best_version(rates(0.5, 0.9, 0.9)) == 1
    assert best_version([]) is None


def test_early_stop_counts_evaluations_since_the_best() -> None:
    assert stop_reason(rates(0.5, 0.9, 0.8), 2, None) is None
    reason = stop_reason(rates(0.5, 0.9, 0.8, 0.85), 2, None)
    assert reason is not None and "version 1" in reason


def test_the_kl_limit_stops_the_job_and_names_its_setting() -> None:
    evaluations = [Evaluation(0, 0.5, 0.0), Evaluation(1, 0.7, 12.5)]
    assert stop_reason(evaluations, None, 20.0) is None
    reason = stop_reason(evaluations, None, 10.0)
    assert reason is not None and "schedule.max_kl" in reason and "12.50" in reason
