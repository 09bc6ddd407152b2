"""The memory of a domain keeps what it says, in whatever order groups arrive, and never grows past its bound."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import InputError
from learner.preference import win_matrix
from learner.preference_memory import HEADER_BYTES, MemoryRule, PreferenceMemory, preference_margin
from learner.records import ScoredGroup
from tests.learner.builders import answer, bradley_terry, group, random_groups

PLENTY = 1 << 20


@cache
def sample_groups(count: int = 60) -> tuple[ScoredGroup, ...]:
    """Groups of different sizes and margins; many margins are equal."""
    return tuple(random_groups(count, seed=4))


def size(group: ScoredGroup) -> int:
    return len(group.model_dump_json().encode()) + 1


def filled(
    groups: list[ScoredGroup], share: float, max_bytes: int, rule: MemoryRule, seed: int = 0
) -> PreferenceMemory:
    memory = PreferenceMemory(share, max_bytes, rule, seed)
    for item in groups:
        memory.offer(item)
    return memory


shares = st.sampled_from([0.01, 0.05, 0.3, 1.0])
bounds = st.one_of(st.integers(HEADER_BYTES + 1, HEADER_BYTES + 60 * 1500), st.just(PLENTY))
rules = st.sampled_from(["random", "margin"])


@given(st.integers(1, 60), shares, bounds, rules, st.integers(-5, 5), st.randoms())
def test_the_same_groups_make_the_same_memory_in_any_order(
    count: int, share: float, max_bytes: int, rule: MemoryRule, seed: int, shuffler: random.Random
) -> None:
    groups = list(sample_groups()[:count])
    memory = filled(groups, share, max_bytes, rule, seed)
    shuffler.shuffle(groups)
    assert filled(groups, share, max_bytes, rule, seed).to_bytes() == memory.to_bytes()


@given(st.integers(0, 60), shares, bounds, rules)
def test_a_memory_keeps_its_share_within_its_bound_and_at_least_one_group_that_fits(
    count: int, share: float, max_bytes: int, rule: MemoryRule
) -> None:
    memory = PreferenceMemory(share, max_bytes, rule)
    for offered, item in enumerate(sample_groups()[:count], start=1):
        memory.offer(item)
        fitting = sum(size(g) <= max_bytes - HEADER_BYTES for g in sample_groups()[:offered])
        assert len(memory.to_bytes()) <= max_bytes
        assert (memory.offered, memory.oversized) == (offered, offered - fitting)
        assert min(fitting, 1) <= len(memory.groups) <= max(1, round(share * offered))
        if max_bytes == PLENTY:
            assert len(memory.groups) == max(1, round(share * offered))


@given(st.integers(1, 60), st.integers(0, 60), shares, bounds, rules)
def test_a_memory_that_is_read_back_goes_on_as_it_would_have(
    count: int, stop: int, share: float, max_bytes: int, rule: MemoryRule
) -> None:
    groups = list(sample_groups()[:count])
    memory = PreferenceMemory.from_bytes(filled(groups[:stop], share, max_bytes, rule, seed=9).to_bytes())
    for item in groups[stop:]:
        memory.offer(item)
    whole = filled(groups, share, max_bytes, rule, seed=9)
    assert memory.to_bytes() == whole.to_bytes()
    assert memory.groups == whole.groups


@given(st.integers(1, 60), shares, bounds, rules)
def test_a_sealed_memory_holds_its_groups_alone_and_takes_no_more(
    count: int, share: float, max_bytes: int, rule: MemoryRule
) -> None:
    memory = filled(list(sample_groups()[:count]), share, max_bytes, rule)
    kept = memory.groups
    memory.seal()
    memory.seal()
    back = PreferenceMemory.from_bytes(memory.to_bytes())
    assert memory.groups == back.groups == kept
    assert memory.to_bytes().count(b"\n") == 1 + len(kept)
    assert back.sealed
    with pytest.raises(RuntimeError, match="next domain"):
        back.offer(sample_groups()[0])


def test_the_clearest_preferences_are_kept() -> None:
    rewards = [[0, 1], [0, -4], [0, 2], [3, 0], [0, 0.5], [0, 0]]
    groups = [group([answer([1]), answer([2])], bradley_terry(r), index) for index, r in enumerate(rewards)]
    assert [g.index for g in filled(groups, 0.5, PLENTY, "margin").groups] == [1, 3, 2]


def test_the_margin_orders_groups_as_the_win_matrix_does_and_forgets_position_bias() -> None:
    biased = group([answer([1]), answer([2])], [[0, 9], [9, 0]])
    assert preference_margin(biased) == 0
    groups = sample_groups()
    by_margin = sorted(groups, key=preference_margin)
    clear = [abs(win_matrix(g.ordered_logits, 2.0) - 0.5).max() for g in by_margin]
    assert clear == sorted(clear)


def test_random_choice_depends_on_the_seed_and_not_on_the_margin() -> None:
    groups = list(sample_groups())
    first, second = (filled(groups, 0.2, PLENTY, "random", seed).groups for seed in (1, 2))
    assert len(first) == len(second) == 12
    assert {g.group_id for g in first} != {g.group_id for g in second}
    counts = dict.fromkeys((g.group_id for g in groups), 0)
    for seed in range(200):
        for kept in filled(groups, 0.2, PLENTY, "random", seed).groups:
            counts[kept.group_id] += 1
    # Binomial(200, 0.2): mean 40, standard deviation 5.7; five of them either way.
    assert all(12 <= count <= 68 for count in counts.values())


def test_a_group_that_was_left_out_comes_in_when_the_share_has_grown() -> None:
    groups = list(sample_groups())
    order = filled(groups, 1.0, PLENTY, "random").groups
    memory = PreferenceMemory(0.1, PLENTY)
    for item in order[:14]:
        memory.offer(item)
    assert memory.groups == order[:1]
    for item in order[14:]:
        memory.offer(item)
    assert memory.groups == order[:6]


def test_a_group_larger_than_the_memory_is_counted_and_stands_in_nobodys_way() -> None:
    small, large = sample_groups()[0], group([answer(range(900)), answer([2])], [[0, 50], [-50, 0]], index=99)
    memory = filled([large, small], 1.0, HEADER_BYTES + size(small), "margin")
    assert memory.groups == (small,)
    assert (memory.offered, memory.oversized) == (2, 1)


def test_a_held_group_that_is_offered_again_changes_nothing() -> None:
    memory = filled(list(sample_groups()), 0.1, PLENTY, "random")
    before = memory.to_bytes()
    memory.offer(memory.groups[0])
    assert memory.to_bytes() == before


def test_an_empty_memory_goes_through_bytes() -> None:
    memory = PreferenceMemory.from_bytes(PreferenceMemory(0.02, 4096, "margin", 3).to_bytes())
    assert memory.groups == ()
    assert memory.to_bytes() == PreferenceMemory(0.02, 4096, "margin", 3).to_bytes()


def test_the_longest_header_fits_into_its_room() -> None:
    memory = PreferenceMemory(0.012345678901234567, (1 << 63) - 1, "margin", -(1 << 63))
    margin = 1.2345678901234567e-300
    memory._update(offered=(1 << 63) - 1, oversized=(1 << 63) - 1, cut=(-margin, "f" * 64))
    assert len(memory.to_bytes()) <= HEADER_BYTES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, "share: 0.0"),
        ({"share": 1.5}, "share: 1.5"),
        ({"share": float("nan")}, "share"),
        ({"max_bytes": HEADER_BYTES}, "max_bytes: 512"),
        ({"seed": 1 << 63}, "64 bits"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PreferenceMemory(**{"share": 0.5, "max_bytes": 4096} | arguments)


def test_bytes_that_are_no_memory_are_refused() -> None:
    good = filled(list(sample_groups()), 0.1, PLENTY, "random").to_bytes()
    lines = good.split(b"\n")
    swapped = b"\n".join([lines[0], lines[2], lines[1], *lines[3:]])
    for wrong in (
        b"",
        good[:-9],
        b"{}\n",
        b"x\n",
        good + b"{}\n",
        swapped,
        good.replace(b'"offered":60', b'"offered":3', 1),
    ):
        with pytest.raises(InputError, match="not readable"):
            PreferenceMemory.from_bytes(wrong)
