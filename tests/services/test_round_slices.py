"""Which prompts rounds take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import ScheduleConfig
from learner.errors import InputError
from services.jobs.prepare import RoundSlices, shuffled


def schedule(rounds: int, per_round: int, reuse: bool = False) -> ScheduleConfig:
    return ScheduleConfig(rounds=rounds, prompts_per_round=per_round, prompts_per_step=1, reuse_prompts=reuse)


def ids(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5), st.booleans(), st.integers(0, 1000))
def test_rounds_take_disjoint_slices(rounds: int, per_round: int, spare: int, shuffle: bool, seed: int) -> None:
    count = rounds * per_round + spare
    slices = RoundSlices(ids(count), schedule(rounds, per_round), shuffle=shuffle, seed=seed)
    taken = [index for round in range(rounds) for index in slices.indices(round)]
    assert len(taken) == len(set(taken)) == rounds * per_round
    assert set(taken) <= set(range(count))


@given(st.integers(1, 30), st.integers(1, 10), st.integers(1, 12), st.integers(0, 1000))
def test_with_reuse_no_round_holds_a_prompt_twice_and_a_pass_uses_each_at_most_once(
    count: int, per_round: int, rounds: int, seed: int
) -> None:
    per_round = min(per_round, count)
    slices = RoundSlices(ids(count), schedule(rounds, per_round, reuse=True), shuffle=True, seed=seed)
    in_pass = count // per_round
    for start in range(0, rounds, in_pass):
        taken = [index for round in range(start, min(start + in_pass, rounds)) for index in slices.indices(round)]
        assert len(taken) == len(set(taken))


@given(st.permutations(ids(12)), st.integers(0, 1000))
def test_the_shuffle_depends_on_ids_and_seed_not_on_the_files_order(order: list[str], seed: int) -> None:
    assert [order[index] for index in shuffled(order, seed)] == [ids(12)[index] for index in shuffled(ids(12), seed)]


def test_passes_and_seeds_shuffle_differently_and_without_shuffle_the_files_order_holds() -> None:
    slices = RoundSlices(ids(30), schedule(2, 30, reuse=True), shuffle=True, seed=1)
    other = RoundSlices(ids(30), schedule(2, 30, reuse=True), shuffle=True, seed=2)
    assert slices.indices(0) != slices.indices(1)
    assert slices.indices(0) != other.indices(0)
    assert RoundSlices(ids(6), schedule(2, 3), shuffle=False, seed=0).indices(1) == [3, 4, 5]


def test_too_few_prompts_are_refused_with_the_numbers() -> None:
    with pytest.raises(InputError, match="3 rounds of 4 prompts need 12 prompts, and there are 11"):
        RoundSlices(ids(11), schedule(3, 4), shuffle=True, seed=0)
    with pytest.raises(InputError, match=r"schedule.prompts_per_round: 12 is more than the 11 prompts"):
        RoundSlices(ids(11), schedule(3, 12, reuse=True), shuffle=True, seed=0)


def test_a_round_beyond_the_prompts_is_an_error_and_not_an_empty_slice() -> None:
    slices = RoundSlices(ids(6), schedule(2, 3), shuffle=False, seed=0)
    with pytest.raises(IndexError):
        slices.indices(2)
