"""Versions and domains: each domain takes its rounds, and a combination follows all but the first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.config import ScheduleConfig
from services.jobs.domains import Domain, DomainPlan


def plan(**schedule: object) -> DomainPlan:
    return DomainPlan(ScheduleConfig.model_validate(schedule))


def test_without_domains_one_stretch_takes_all_rounds() -> None:
    assert plan(rounds=3).domains == (Domain(None, 0, 3, 3),)
    assert plan(rounds=3).last_version == 3
    assert plan(rounds=3).ends_at(3) is None


def test_each_domain_takes_its_rounds_one_after_another() -> None:
    made = plan(rounds=2, domains=["a", "b"])
    assert made.domains == (Domain("a", 0, 2, 2), Domain("b", 2, 4, 4))
    assert not any(made.combines_after(version) for version in range(5))


def test_a_combination_follows_every_domain_but_the_first() -> None:
    made = plan(rounds=2, domains=["a", "b", "c"], combine="cofs")
    assert made.domains == (Domain("a", 0, 2, 2), Domain("b", 2, 4, 5), Domain("c", 5, 7, 8))
    assert [version for version in range(9) if made.combines_after(version)] == [4, 7]
    assert made.last_version == 8
    assert [made.at(version).name for version in range(9)] == ["a", "a", "b", "b", "b", "c", "c", "c", "c"]
    assert [version for version in range(9) if made.ends_at(version)] == [2, 5, 8]


@given(rounds=st.integers(1, 5), count=st.integers(1, 5), combine=st.sampled_from(["none", "last", "mean", "cofs"]))
def test_every_version_is_trained_or_combined_once(rounds: int, count: int, combine: str) -> None:
    made = plan(rounds=rounds, domains=[f"d{i}" for i in range(count)], combine=combine)
    combined = sum(made.combines_after(version) for version in range(made.last_version))
    assert combined == (count - 1 if combine != "none" else 0)
    assert made.last_version == rounds * count + combined
    assert all(made.at(version).start <= version < made.at(version).end for version in range(made.last_version))
