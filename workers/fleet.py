"""Health of the samplers: who is starting, stale, proven, fenced or dead, and what to do about it. Pure, with counts as metrics.

The missing transition matters most: nothing leads to ``ready`` but a proof of the version (rule 4), so a restarted sampler cannot write
before it has loaded and proved the current version (rule 10).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from workers.config import FleetConfig


class SamplerState(StrEnum):
    """Where a sampler stands."""

    STARTING = "starting"
    """Its process and engine are coming up."""
    STALE = "stale"
    """It runs, but has proved no version since it started."""
    READY = "ready"
    """It has proved at least one version and may be given tickets of it."""
    FENCED = "fenced"
    """Its proof failed for good. It gets no more work."""
    DEAD = "dead"
    """Its process is gone and its restarts are used up."""


class Action(StrEnum):
    """What to do after a failure."""

    RESTART = "restart"
    RELOAD = "reload"
    FENCE = "fence"
    STOP = "stop"
    GIVE_UP = "give_up"


@dataclass
class Sampler:
    """One sampler's record. ``proven`` is the newest version that it proved, ``known`` are all since it started."""

    name: str
    state: SamplerState = SamplerState.STARTING
    proven: int | None = None
    loading: int | None = None
    known: set[int] = field(default_factory=set)
    restarts: int = 0
    failed_proofs: int = 0


@dataclass
class Fleet:
    """The samplers of one job.

    Args:
        config: how often to restart and to reload.
        names: the samplers' names, in the order in which shares of a round are dealt.
    """

    config: FleetConfig
    names: tuple[str, ...]
    samplers: dict[str, Sampler] = field(init=False)
    restarts_total: int = 0
    failed_proofs_total: int = 0
    cannot_tell_total: int = 0
    fenced_total: int = 0

    def __post_init__(self) -> None:
        self.samplers = {name: Sampler(name) for name in self.names}

    def started(self, name: str) -> None:
        """The sampler's engine is up. It is stale until it proves a version."""
        sampler = self.samplers[name]
        sampler.state, sampler.proven, sampler.loading = SamplerState.STALE, None, None
        sampler.known.clear()

    def died(self, name: str) -> Action:
        """The sampler's process is gone: restart it, or give it up when its restarts are used up."""
        sampler = self.samplers[name]
        sampler.proven = sampler.loading = None
        sampler.known.clear()
        if sampler.state in (SamplerState.FENCED, SamplerState.DEAD):
            return Action.GIVE_UP
        if sampler.restarts >= self.config.max_worker_restarts:
            sampler.state = SamplerState.DEAD
            return Action.GIVE_UP
        sampler.restarts += 1
        self.restarts_total += 1
        sampler.state = SamplerState.STARTING
        return Action.RESTART

    def to_load(self, newest: int) -> list[str]:
        """Samplers that should load version ``newest`` now."""
        return [
            sampler.name
            for sampler in self.samplers.values()
            if sampler.state in (SamplerState.STALE, SamplerState.READY)
            and sampler.loading is None
            and sampler.proven != newest
        ]

    def loading(self, name: str, version: int) -> None:
        """The sampler was told to load ``version``."""
        self.samplers[name].loading = version

    def knows(self, name: str, version: int) -> bool:
        """Whether the sampler has proved ``version`` since it started."""
        return version in self.samplers[name].known

    def proved_opponent(self, name: str, version: int, *, certain: bool = True) -> None:
        """The sampler runs an older version too, and goes on to load the newest: it is not ready by that."""
        self.cannot_tell_total += not certain
        self.samplers[name].known.add(version)

    def proved(self, name: str, version: int, *, certain: bool = True) -> None:
        """The sampler runs ``version``: its digest agrees, and its canary passed (``certain``) or could not tell."""
        sampler = self.samplers[name]
        sampler.loading = None
        if sampler.state not in (SamplerState.STALE, SamplerState.READY):
            return
        if not certain:
            self.cannot_tell_total += 1
        sampler.state, sampler.proven, sampler.failed_proofs = SamplerState.READY, version, 0
        sampler.known.add(version)

    def failed_proof(self, name: str) -> Action:
        """The digest or the canary of a loaded version was wrong: load again, or fence; stop the job when two are fenced or none is left."""
        sampler = self.samplers[name]
        sampler.loading = None
        sampler.failed_proofs += 1
        self.failed_proofs_total += 1
        if sampler.failed_proofs <= self.config.max_reloads:
            return Action.RELOAD
        sampler.state, sampler.proven = SamplerState.FENCED, None
        self.fenced_total += 1
        return Action.STOP if self.fenced_total >= 2 or not self.alive() else Action.FENCE

    def alive(self) -> list[str]:
        """Samplers that run or will run again."""
        gone = (SamplerState.FENCED, SamplerState.DEAD)
        return [sampler.name for sampler in self.samplers.values() if sampler.state not in gone]

    def serving(self, version: int) -> list[str]:
        """Samplers that have proved ``version`` as their newest, in dealing order."""
        return [
            sampler.name
            for sampler in self.samplers.values()
            if sampler.state is SamplerState.READY and sampler.proven == version
        ]

    def proven_versions(self) -> set[int]:
        """Versions that some sampler serves as its newest."""
        return {s.proven for s in self.samplers.values() if s.state is SamplerState.READY and s.proven is not None}

    def settled(self, version: int) -> bool:
        """Whether every sampler that is alive has proved ``version``: then a round's shares can be dealt by rule."""
        alive = self.alive()
        return bool(alive) and self.serving(version) == alive

    def as_metrics(self) -> dict[str, float]:
        """Counts under stable names."""
        return {
            "samplers_ready": float(sum(s.state is SamplerState.READY for s in self.samplers.values())),
            "sampler_restarts_total": float(self.restarts_total),
            "sampler_fenced_total": float(self.fenced_total),
            "proofs_failed_total": float(self.failed_proofs_total),
            "canary_cannot_tell_total": float(self.cannot_tell_total),
        }

    def sampler_metrics(self) -> dict[str, dict[str, float]]:
        """Each sampler's own numbers by its name. ``sampler_state`` is the place of its state among all of `SamplerState`, from 0."""
        places = {state: float(place) for place, state in enumerate(SamplerState)}
        return {
            sampler.name: {"sampler_state": places[sampler.state]}
            | ({} if sampler.proven is None else {"sampler_version": float(sampler.proven)})
            for sampler in self.samplers.values()
        }


@dataclass
class ProgressWatchdog:
    """Fails a job whose work is in flight but whose counters have stood still for too long (rule 9).

    Args:
        timeout_seconds: how long is too long.
        now: seconds on the caller's clock when the watch begins.
    """

    timeout_seconds: float
    now: float
    _mark: object = None
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.now

    def stalled_seconds(self, mark: object, now: float) -> float:
        """Seconds since ``mark`` (any value that changes with progress) last changed; call it at every look."""
        if mark != self._mark:
            self._mark, self._since = mark, now
        return now - self._since

    def stalled(self, mark: object, now: float) -> bool:
        """Whether nothing moved for longer than the time-out."""
        return self.stalled_seconds(mark, now) > self.timeout_seconds
