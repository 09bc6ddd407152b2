"""The order of prompts: disjoint slices, reshuffled passes, and refusals with numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import ScheduleConfig
from learner.errors import InputError
from services.jobs.stream import PromptStream, refuse_too_few, shuffled


def ids(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def schedule(rounds: int, per_round: int, reuse: bool = False) -> ScheduleConfig:
    return ScheduleConfig(rounds=rounds, prompts_per_round=per_round, prompts_per_step=1, reuse_prompts=reuse)


@given(count=st.integers(1, 60), passes=st.integers(1, 3), seed=st.integers(0, 9), shuffle=st.booleans())
def test_every_pass_takes_every_prompt_once(count: int, passes: int, seed: int, shuffle: bool) -> None:
    stream = PromptStream(ids(count), shuffle=shuffle, seed=seed, reuse=True)
    for number in range(passes):
        places = [stream.at(number * count + place) for place in range(count)]
        assert sorted(place.index for place in places) == list(range(count))
        assert {place.pass_number for place in places} == {number}
    assert stream.left(10**6) is None


def test_without_reuse_the_stream_ends() -> None:
    stream = PromptStream(ids(5), shuffle=True, seed=0, reuse=False)
    assert stream.left(3) == 2 and stream.left(9) == 0
    with pytest.raises(IndexError):
        stream.at(5)


def test_the_order_depends_on_the_seed_and_the_ids_not_on_the_files_order() -> None:
    names = ids(30)
    order = [names[index] for index in shuffled(names, 1)]
    turned = names[::-1]
    assert [turned[index] for index in shuffled(turned, 1)] == order
    assert [names[index] for index in shuffled(names, 2)] != order


def test_unshuffled_prompts_come_in_the_files_order() -> None:
    stream = PromptStream(ids(6), shuffle=False, seed=3, reuse=False)
    assert [stream.at(position).index for position in range(6)] == [0, 1, 2, 3, 4, 5]


def test_too_few_prompts_are_refused_with_the_numbers() -> None:
    with pytest.raises(InputError, match="3 rounds of 4 prompts need 12 prompts, and there are 11"):
        refuse_too_few([None] * 11, schedule(3, 4))
    with pytest.raises(InputError, match="12 is more than the 11 prompts"):
        refuse_too_few([None] * 11, schedule(3, 12, reuse=True))
    refuse_too_few([None] * 12, schedule(3, 4))
    refuse_too_few([None] * 4, schedule(3, 4, reuse=True))


def test_every_listed_domain_needs_prompts_enough_of_its_own() -> None:
    two = ScheduleConfig(rounds=2, prompts_per_round=2, prompts_per_step=2, domains=("a", "b"))
    refuse_too_few(["a", "b"] * 4, two)
    with pytest.raises(InputError, match="need 4 prompts of domain b, and there are 3"):
        refuse_too_few(["a", "b"] * 3 + ["a"] * 9, two)
    with pytest.raises(InputError, match=r"domains: b is the domain of no prompt in prompts.source \(its domains: a\)"):
        refuse_too_few(["a", None] * 9, two)


def test_a_domains_stream_takes_its_own_prompts_only_by_their_places_in_the_file() -> None:
    stream = PromptStream(ids(6), shuffle=True, seed=3, reuse=False, indices=[1, 4, 5])
    assert sorted(stream.at(position).index for position in range(3)) == [1, 4, 5]
    assert stream.left(1) == 2
