"""A busy controller is not a dead one."""

from __future__ import annotations

from typing import Any

import pytest

from services.jobs import launcher
from services.jobs.launcher import Launcher
from services.settings import Settings
from workers.errors import CallTimeout, WorkerDied


class Cluster:
    """Stands for the cluster: what a ping brings, and which actors were killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: Exception | None = None
        self.killed: list[str] = []
        self.now = 1000.0
        monkeypatch.setattr(launcher.cluster, "connect", lambda *_, **__: None)
        monkeypatch.setattr(launcher.cluster, "kill", self.killed.append)
        monkeypatch.setattr(launcher.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(launcher.Link, "call_blocking", self.ping)

    def ping(self, *_: Any, **__: Any) -> bool:
        if self.answer is not None:
            raise self.answer
        return True


def test_a_controller_that_is_too_busy_to_answer_is_alive_until_it_was_silent_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch)
    made = Launcher(Settings.load())
    assert made.alive("job")
    cluster.answer = CallTimeout("no answer within 10 s")
    assert made.alive("job")
    cluster.now += made.settings.start_timeout_seconds - 20
    assert made.alive("job")
    cluster.answer = None
    assert made.alive("job")  # it answered: the silence is counted from the start again
    cluster.answer = CallTimeout("no answer within 10 s")
    assert made.alive("job") and not cluster.killed
    cluster.now += made.settings.start_timeout_seconds
    assert not made.alive("job")
    assert len(cluster.killed) == 1


@pytest.mark.parametrize("end", ["killed", "died", "waited for", "started again"])
def test_the_silence_of_a_controller_does_not_count_for_the_next(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    cluster = Cluster(monkeypatch)
    made = Launcher(Settings.load())
    late = CallTimeout("no answer within 10 s")
    cluster.answer = late
    assert made.alive("job")
    cluster.now += made.settings.start_timeout_seconds
    if end == "killed":
        assert not made.alive("job")
    elif end == "started again":
        monkeypatch.setattr(launcher.cluster, "spawn", lambda *_, **__: None)
        monkeypatch.setattr(launcher.Link, "begin", lambda *_: None)
        made.start("job")
    else:
        cluster.answer = WorkerDied("gone")
        if end == "died":
            assert not made.alive("job")
        else:
            made.wait_gone("job")
    cluster.answer, killed = late, len(cluster.killed)
    assert made.alive("job")  # the next one is late for the first time
    assert len(cluster.killed) == killed


def test_a_controller_whose_process_is_gone_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch).answer = WorkerDied("gone")
    assert not Launcher(Settings.load()).alive("job")
