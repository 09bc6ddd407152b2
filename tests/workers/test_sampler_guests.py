"""Chat's share of a sampler: bounded, and no version goes while a request names it."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.sampler.errors import ChatBusy
from workers.sampler.guests import Adapter, Guests

ADAPTERS: list[Adapter | None] = [None, ("fast", 0), ("fast", 1), ("fast", 2), ("slow", 2), ("slow", 3)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.sampled_from(ADAPTERS)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("claim"), st.sampled_from(ADAPTERS[1:])),
    ),
    max_size=60,
)


@given(slots=st.integers(0, 3), steps=STEPS)
def test_there_is_always_room_for_whom_is_let_in_and_never_more(slots: int, steps: list[tuple[str, object]]) -> None:
    """As a sampler does it: a request that is let in has its version loaded, in place of another where chat's share is full."""
    guests = Guests(slots)
    running: list[tuple[Adapter | None, AbstractContextManager[None]]] = []
    loaded: set[Adapter] = set()
    for step, what in steps:
        if step == "begin":
            request = guests.request(what)  # type: ignore[arg-type]
            if len(running) == slots:
                with pytest.raises(ChatBusy):
                    request.__enter__()
                continue
            request.__enter__()
            running.append((what, request))  # type: ignore[arg-type]
            if what is not None and what not in loaded:
                if (old := guests.to_unload()) is not None:
                    assert old in loaded and old not in [adapter for adapter, _ in running]
                    guests.remove(old)
                    loaded.remove(old)
                guests.add(what)  # type: ignore[arg-type]
                loaded.add(what)  # type: ignore[arg-type]
        elif step == "end" and running:
            _, request = running.pop(int(what) % len(running))  # type: ignore[call-overload]
            request.__exit__(None, None, None)
        elif step == "claim":
            guests.remove(what)  # type: ignore[arg-type]
        assert guests.running == len(running) <= slots
        assert len(guests) <= slots
        assert all(adapter is None or adapter in loaded for adapter, _ in running)


def test_the_longest_unused_guest_goes_first() -> None:
    guests = Guests(2)
    for version in (0, 1):
        with guests.request(("fast", version)):
            guests.add(("fast", version))
    with guests.request(("fast", 0)):
        pass
    with guests.request(("fast", 2)):
        assert guests.to_unload() == ("fast", 1)


def test_a_request_that_fails_gives_its_place_back() -> None:
    guests = Guests(1)
    with suppress(ValueError), guests.request(("fast", 0)):
        raise ValueError
    assert guests.running == 0 and not guests.named(("fast", 0))


def test_a_refusal_names_the_setting() -> None:
    with pytest.raises(ChatBusy, match=r"resources\.sampler\.chat_slots"), Guests(0).request(None):
        pass
