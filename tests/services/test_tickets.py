"""Rule 7: no order of arrival, expiry, failure, skip or restart stalls the learner or exceeds the staleness bound."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.jobs.tickets import Standing, TicketOffice


@dataclass
class World:
    """A ledger, samplers and a learner reduced to counts: each group is the version that it was written under."""

    office: TicketOffice
    prompts_per_step: int
    version: int = 0
    granted: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    leased: list[int] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    lost: int = 0
    admitted: int = 0

    @property
    def standing(self) -> Standing:
        return Standing(self.version, len(self.granted), len(self.ready), len(self.leased))

    def grant(self) -> None:
        count = self.office.to_grant(self.standing, prompts_left=None)
        self.granted += [self.version] * count
        self.admitted += count

    def arrive(self, which: int) -> None:
        if self.granted:
            self.ready.append(self.granted.pop(which % len(self.granted)))

    def lose(self, which: int) -> None:
        """A group is skipped, or fails for good."""
        if self.granted:
            self.granted.pop(which % len(self.granted))
            self.lost += 1

    def learn(self) -> bool:
        fresh = [version for version in self.ready if self.version - version <= self.office.max_staleness]
        self.lost += len(self.ready) - len(fresh)
        self.ready = fresh
        count = self.office.next_batch(self.standing, self.prompts_per_step)
        if count == 0 or len(self.ready) < count or self.version >= self.office.versions:
            return False
        batch, self.ready = self.ready[:count], self.ready[count:]
        assert all(self.version - version <= self.office.max_staleness for version in batch)
        self.leased += batch
        if len(self.leased) == self.office.groups_per_version:
            self.consumed += self.leased
            self.leased = []
            self.version += 1
        return True

    def crash(self) -> None:
        """A restart goes back to the newest version: its leases are released."""
        self.ready = self.leased + self.ready
        self.leased = []


@st.composite
def worlds(draw: st.DrawFn) -> World:
    groups = draw(st.integers(1, 9))
    staleness = draw(st.integers(0, 3))
    office = TicketOffice(
        groups, staleness, draw(st.integers(1, 4)), whole_waves=staleness == 0 and draw(st.booleans())
    )
    return World(office, draw(st.integers(1, groups)))


EVENTS = st.lists(
    st.tuples(st.sampled_from(["grant", "arrive", "arrive", "lose", "learn", "crash"]), st.integers(0, 50)),
    max_size=150,
)


@given(worlds(), EVENTS)
@settings(max_examples=300, deadline=None)
def test_no_order_of_events_stalls_the_learner_or_exceeds_the_bound(
    world: World, events: list[tuple[str, int]]
) -> None:
    for name, which in events:
        if name in ("arrive", "lose"):
            getattr(world, name)(which)
        else:
            getattr(world, name)()
        outstanding = len(world.granted) + len(world.ready) + len(world.leased)
        assert outstanding <= (world.office.max_staleness + 1) * world.office.groups_per_version
        assert world.admitted == outstanding + len(world.consumed) + world.lost

    for _ in range(10_000):  # from any state, honest work alone reaches the last version
        if world.version == world.office.versions:
            break
        world.grant()
        while world.granted:
            world.arrive(0)
        assert world.learn() or world.office.to_grant(world.standing, None) > 0, f"stalled at {world.standing}"
    assert world.version == world.office.versions
    assert len(world.consumed) == world.office.versions * world.office.groups_per_version


def test_rounds_grant_exactly_one_slice_and_replace_what_was_skipped() -> None:
    office = TicketOffice(groups_per_version=8, max_staleness=0, versions=3, whole_waves=True)
    assert office.to_grant(Standing(0, 0, 0, 0), prompts_left=100) == 8
    assert office.to_grant(Standing(0, 3, 4, 0), prompts_left=92) == 0, "replacements wait until the wave has settled"
    assert office.to_grant(Standing(0, 0, 6, 0), prompts_left=92) == 2
    assert office.to_grant(Standing(1, 0, 0, 0), prompts_left=90) == 8


def test_a_version_closes_short_when_the_prompts_run_out() -> None:
    office = TicketOffice(groups_per_version=8, max_staleness=0, versions=3, whole_waves=True)
    assert not office.closed(Standing(0, 0, 5, 0), prompts_left=2)
    assert office.closed(Standing(0, 0, 7, 0), prompts_left=0)
    assert not office.closed(Standing(0, 1, 6, 0), prompts_left=0)


def test_a_version_that_closed_short_does_not_widen_the_next() -> None:
    office = TicketOffice(groups_per_version=8, max_staleness=0, versions=3)
    assert office.capacity(Standing(version=1, granted=0, ready=0, leased=0)) == 8


def test_nothing_is_granted_beyond_the_last_version() -> None:
    office = TicketOffice(groups_per_version=4, max_staleness=2, versions=2)
    assert office.to_grant(Standing(0, 0, 0, 0), None) == 8
    assert office.to_grant(Standing(1, 1, 3, 0), None) == 0
    assert office.to_grant(Standing(2, 0, 0, 0), None) == 0


@pytest.mark.parametrize(("free", "granted"), [(0, 0), (3, 3), (50, 12)])
def test_samplers_slots_bound_the_grants(free: int, granted: int) -> None:
    office = TicketOffice(groups_per_version=4, max_staleness=2, versions=9)
    assert office.to_grant(Standing(0, 0, 0, 0), None, free_slots=free) == granted
