"""The table of versions in a sampler: unique ids, reference counts, and a bound that is said aloud."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.sampler.errors import AdapterRejected, VersionInUse, VersionNotLoaded
from workers.sampler.slots import AdapterSlots


def filled(capacity: int, versions: int) -> AdapterSlots:
    slots = AdapterSlots(capacity)
    for version in range(versions):
        slots.reserve("fast", version, f"job/fast/v{version}")
        slots.ready("fast", version, f"digest-{version}")
    return slots


def test_a_version_can_be_named_only_when_it_is_ready() -> None:
    slots = AdapterSlots(2)
    slots.reserve("fast", 0, "job/fast/v0")
    with pytest.raises(VersionNotLoaded, match="version 0 of fast is not loaded"), slots.use("fast", 0):
        pass
    slots.ready("fast", 0, "digest")
    with slots.use("fast", 0) as slot:
        assert slot.name == "job/fast/v0"
    assert slots.versions("fast") == {0: "digest"}


def test_a_version_is_not_loaded_twice() -> None:
    with pytest.raises(AdapterRejected, match="never overwritten"):
        filled(2, 1).reserve("fast", 0, "job/fast/v0")


def test_a_full_table_refuses_and_names_the_setting() -> None:
    with pytest.raises(AdapterRejected, match="cpu_lora_slots"):
        filled(2, 2).reserve("fast", 2, "job/fast/v2")


def test_a_version_in_use_cannot_be_freed() -> None:
    slots = filled(2, 1)
    with slots.use("fast", 0), slots.use("fast", 0):
        assert slots.running("fast", 0) == 2
        with pytest.raises(VersionInUse, match="2 running requests"):
            slots.removable("fast", 0)
    assert slots.removable("fast", 0).running == 0


def test_modules_have_versions_of_their_own() -> None:
    slots = filled(3, 1)
    slots.reserve("slow", 0, "job/slow/v0")
    slots.ready("slow", 0, "other")
    assert slots.versions("fast") == {0: "digest-0"}
    assert slots.versions("slow") == {0: "other"}


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=40))
def test_integer_ids_start_at_one_and_never_come_back(steps: list[tuple[int, bool]]) -> None:
    slots, given_ids = AdapterSlots(3), []
    for version, drop in steps:
        with contextlib.suppress(AdapterRejected):
            given_ids.append(slots.reserve("fast", version, f"v{version}").lora_id)
        if drop:
            slots.drop("fast", version)
        assert len(slots) <= 3
    assert given_ids == list(range(1, len(given_ids) + 1))
