"""The fleet's state machine: only a proof makes a sampler ready, and failures end in a restart, a fence or a stop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.config import FleetConfig
from workers.fleet import Action, Fleet, ProgressWatchdog, SamplerState


def fleet(*names: str, **config: int) -> Fleet:
    return Fleet(FleetConfig(**config), names or ("s0", "s1"))


def test_a_started_sampler_is_stale_until_it_proves_the_version() -> None:
    f = fleet("s0")
    f.started("s0")
    assert f.serving(0) == [] and f.to_load(0) == ["s0"]
    f.loading("s0", 0)
    assert f.to_load(0) == []
    f.proved("s0", 0)
    assert f.serving(0) == ["s0"] and f.settled(0)


def test_a_ready_sampler_keeps_serving_its_version_while_it_loads_the_next() -> None:
    f = fleet("s0")
    f.started("s0")
    f.proved("s0", 3)
    f.loading("s0", 4)
    assert f.serving(3) == ["s0"] and not f.settled(4)


def test_a_sampler_that_proved_its_opponent_alone_is_not_ready_and_forgets_it_when_it_dies() -> None:
    f = fleet("s0")
    f.started("s0")
    f.loading("s0", 3)
    f.proved_opponent("s0", 0, certain=False)
    assert f.knows("s0", 0) and f.serving(0) == [] and f.to_load(3) == [] and f.cannot_tell_total == 1
    f.proved("s0", 3)
    assert f.serving(3) == ["s0"] and f.knows("s0", 0) and f.knows("s0", 3)
    f.died("s0")
    f.started("s0")
    assert not f.knows("s0", 0)


def test_a_dead_sampler_is_restarted_and_stale_again() -> None:
    f = fleet("s0", "s1")
    for name in f.names:
        f.started(name)
        f.proved(name, 2)
    assert f.died("s0") is Action.RESTART
    assert f.serving(2) == ["s1"]
    f.started("s0")
    assert f.to_load(2) == ["s0"]


def test_restarts_are_bounded() -> None:
    f = fleet("s0", max_worker_restarts=2)
    assert [f.died("s0") for _ in range(3)] == [Action.RESTART, Action.RESTART, Action.GIVE_UP]
    assert f.alive() == []


def test_a_failed_proof_is_reloaded_then_fenced_and_two_fenced_samplers_stop_the_job() -> None:
    f = fleet("s0", "s1", "s2", max_reloads=1)
    for name in f.names:
        f.started(name)
    assert f.failed_proof("s0") is Action.RELOAD
    assert f.failed_proof("s0") is Action.FENCE
    assert "s0" not in f.alive() and f.to_load(1) == ["s1", "s2"]
    assert f.failed_proof("s1") is Action.RELOAD
    assert f.failed_proof("s1") is Action.STOP


def test_the_only_sampler_fenced_stops_the_job() -> None:
    f = fleet("s0", max_reloads=0)
    f.started("s0")
    assert f.failed_proof("s0") is Action.STOP


def test_a_proof_that_could_not_tell_is_counted() -> None:
    f = fleet("s0")
    f.started("s0")
    f.proved("s0", 1, certain=False)
    assert f.as_metrics()["canary_cannot_tell_total"] == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["started", "died", "proved", "failed", "load"]), st.integers(0, 2)), max_size=60
    )
)
def test_a_sampler_serves_only_between_its_proof_and_its_death_or_fence(events: list[tuple[str, int]]) -> None:
    f = fleet("s0", "s1", "s2")
    proven: dict[str, int | None] = dict.fromkeys(f.names)
    for count, (event, which) in enumerate(events):
        name = f.names[which]
        state = f.samplers[name].state
        if event == "started" and state is SamplerState.STARTING:
            f.started(name)
            proven[name] = None
        elif event == "died":
            f.died(name)
            proven[name] = None
        elif event == "load" and name in f.to_load(count):
            f.loading(name, count)
        elif event == "proved" and state in (SamplerState.STALE, SamplerState.READY):
            f.proved(name, count)
            proven[name] = count
        elif event == "failed" and state in (SamplerState.STALE, SamplerState.READY):
            fenced = f.failed_proof(name) in (Action.FENCE, Action.STOP)
            proven[name] = None if fenced else proven[name]
        for version in range(len(events) + 1):
            assert f.serving(version) == [n for n in f.names if proven[n] == version]


def test_the_watchdog_sees_standstill_and_forgives_progress() -> None:
    dog = ProgressWatchdog(10, now=0)
    assert not dog.stalled(1, now=9)
    assert not dog.stalled(2, now=18)
    assert not dog.stalled(2, now=28)
    assert dog.stalled(2, now=28.5)
