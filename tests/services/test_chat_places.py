"""The places for chat alone: bounded, never taken from under somebody, ended when idle."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.chat.errors import ChatUnavailable
from services.chat.places import Places, Stay

IDLE = 10.0


class PlacesMachine(RuleBasedStateMachine):
    """People come and go, and time passes; a model keeps who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.places = Places(2, IDLE, clock=lambda: self.now)
        self.stays: list[tuple[str, Stay]] = []
        self.left: dict[str, float] = {}
        self.up: set[str] = set()

    @property
    def used(self) -> Counter[str]:
        return Counter(job for job, _ in self.stays)

    @rule(job=st.sampled_from("abcd"))
    def enter(self, job: str) -> None:
        full = job not in self.up and len(self.up) == 2 and len(self.used) == 2
        if full:
            with pytest.raises(ChatUnavailable, match="all 2 places"):
                self.places.enter(job)
            return
        unused = sorted((self.left[other], other) for other in self.up if not self.used[other])
        stay = self.places.enter(job)
        if job in self.up or len(self.up) < 2:
            assert stay.gone is None
        else:
            assert stay.gone == unused[0][1], "the longest unused gives way"
            self.up.discard(unused[0][1])
        self.up.add(job)
        self.stays.append((job, stay))

    @precondition(lambda self: self.stays)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job, stay = self.stays.pop(data.draw(st.integers(0, len(self.stays) - 1)))
        self.places.leave(stay)
        self.left[job] = self.now

    @rule(seconds=st.floats(0.1, 15))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(needed=st.booleans())
    def look(self, needed: bool) -> None:
        due = set(self.places.due(all_unused=needed))
        unused = {job for job in self.up if not self.used[job]}
        assert due == {job for job in unused if needed or self.now - self.left[job] >= IDLE}
        self.up -= due

    @invariant()
    def bounded(self) -> None:
        assert len(self.places) == len(self.up) <= 2
        assert all(job in self.places for job in self.used)


TestPlaces = PlacesMachine.TestCase
TestPlaces.settings = settings(max_examples=60, stateful_step_count=30)


def test_without_places_there_is_no_chat() -> None:
    with pytest.raises(ChatUnavailable, match="SPARRING_CHAT_PLACES: 0"):
        Places(0, IDLE).enter("a")


def test_a_stay_that_outlives_its_place_does_not_touch_the_next_one() -> None:
    places = Places(1, IDLE, clock=lambda: 0.0)
    old = places.enter("a")
    places.drop("a")
    places.enter("a")
    places.leave(old)
    with suppress(ChatUnavailable):
        places.enter("b")
    assert "a" in places and "b" not in places
