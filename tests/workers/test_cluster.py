"""Ray, spoken to through our own words. One real local Ray for the whole file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from learner.errors import InputError
from workers import cluster, process_tree, reservations, roles
from workers.capacity import Demand, Node, check_capacity
from workers.cluster import CallTimeout, Link, WorkerDied, WorkerUnavailable
from workers.leased import LeasedWorker

SECONDS = 60.0


class Echo(LeasedWorker):
    """Async, like most workers."""

    def __init__(self, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.children: list[subprocess.Popen[bytes]] = []
        self.counting = 0

    async def echo(self, value: object) -> object:
        return value

    async def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    async def refuse(self) -> None:
        raise InputError("no")

    async def expire(self) -> None:
        raise TimeoutError("inner")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)

    async def count(self, upto: int, pause: float, fault: bool = False) -> AsyncGenerator[int]:
        self.counting += 1
        try:
            for number in range(upto):
                yield number
                await asyncio.sleep(pause)
            if fault:
                raise InputError("enough")
        finally:
            self.counting -= 1

    async def counters(self) -> int:
        return self.counting

    async def have_child(self) -> int:
        self.children.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]))
        return self.children[-1].pid

    async def start_with_a_card(self, name: str) -> None:
        cluster.spawn(Echo, name, cpus=0.1, gpus=1, args=(300.0,))

    async def ask(self, name: str, value: object) -> object:
        return await Link(name).call("echo", value)


class Plain(LeasedWorker):
    """A class without async methods."""

    def block(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import the classes of this file by name
        patch.setattr(ray, "init", partial(ray.init, num_gpus=1))  # Ray takes our word for the card
        cluster.connect(None, cpus=2, home=tmp_path_factory.mktemp("home"))
        yield
        cluster.disconnect()


def start(name: str, actor_class: type = Echo, lease_seconds: float = 300.0, **options: Any) -> Any:
    return cluster.spawn(actor_class, name, cpus=0.1, args=(lease_seconds,), **options)


def answer(ref: Any) -> Any:
    return cluster.call(ref, SECONDS, "tests.timeout")


def alive(pid: int) -> bool:
    return process_tree._alive(pid)


def until(condition: Any, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and not condition():
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.slow
def test_no_process_waits_idle_for_work_that_it_cannot_get(ray_cluster: None) -> None:
    children = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # Ray's helpers start short-lived ones
            children.append(process.name())
    assert "raylet" in children and not [name for name in children if name.startswith("ray::IDLE")], children


@pytest.mark.slow
def test_workers_are_found_by_name_after_their_handles_are_lost(ray_cluster: None) -> None:
    handle = start("found", threads=3, env={"EXTRA": "x"})
    pid = answer(handle.ping.remote()).pid
    assert answer(handle.environment.remote("OMP_NUM_THREADS")) == "3"
    assert answer(handle.environment.remote("EXTRA")) == "x"
    del handle
    time.sleep(0.5)
    again = cluster.find("found")
    assert again is not None and answer(again.ping.remote()).pid == pid
    assert answer(start("found").ping.remote()).pid == pid  # adopted, not started twice
    cluster.kill("found")
    assert cluster.find("found") is None
    cluster.kill("found")
    fresh = start("found")
    assert answer(fresh.ping.remote()).pid != pid
    cluster.kill("found")


@pytest.mark.slow
def test_a_card_is_seen_by_who_asked_for_one_whoever_started_it(ray_cluster: None) -> None:
    controller = start("without")
    assert answer(controller.environment.remote("CUDA_VISIBLE_DEVICES")) == ""
    answer(controller.start_with_a_card.remote("with"))
    assert Link("with").call_blocking("environment", "CUDA_VISIBLE_DEVICES") == "0"
    for name in ("with", "without"):
        cluster.kill(name)


@pytest.mark.slow
def test_sigkill_raises_worker_died_and_a_link_finds_the_successor(ray_cluster: None) -> None:
    handle = start("victim")
    link = Link("victim")
    assert link.call_blocking("echo", 1) == 1
    pid, child = answer(handle.ping.remote()).pid, answer(handle.have_child.remote())
    waiting = handle.sleep.remote(600)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        answer(waiting)
    with pytest.raises(WorkerDied):
        link.call_blocking("echo", 2)
    assert until(lambda: not alive(child), 30)
    assert until(lambda: cluster.find("victim") is None, 30)
    with pytest.raises(WorkerUnavailable, match="victim"):
        link.call_blocking("echo", 3)
    start("victim")
    assert link.call_blocking("echo", 4) == 4
    cluster.kill("victim")


@pytest.mark.slow
def test_a_worker_ends_when_its_lease_lapses_and_lives_while_it_is_renewed(ray_cluster: None) -> None:
    handle = start("leased", lease_seconds=600)
    pulse = answer(handle.ping.remote())
    assert 500 < pulse.lease_left_seconds <= 600
    cluster.kill("leased")
    brief = start("brief", lease_seconds=8.0)
    child, pid = answer(brief.have_child.remote()), answer(brief.ping.remote()).pid
    for _ in range(20):
        time.sleep(0.5)
        answer(brief.renew_lease.remote(8.0))
    assert alive(pid)
    assert until(lambda: not alive(pid) and not alive(child), 60)
    with pytest.raises(WorkerDied):
        answer(brief.ping.remote())


@pytest.mark.slow
@pytest.mark.parametrize("actor_class", [Echo, Plain])
def test_a_busy_worker_still_answers_pings(ray_cluster: None, actor_class: type) -> None:
    name = f"busy-{actor_class.__name__.lower()}"
    handle = start(name, actor_class)
    answer(handle.ping.remote())
    busy = handle.block.remote(600)
    time.sleep(0.5)
    answer(handle.renew_lease.remote(100))  # within a minute, ten times less than it is busy
    assert ray.wait([busy], timeout=0) == ([], [busy])
    cluster.kill(name)


@pytest.mark.slow
def test_errors_come_back_as_what_they_were(ray_cluster: None) -> None:
    handle = start("honest")
    with pytest.raises(InputError) as refusal:
        answer(handle.refuse.remote())
    assert str(refusal.value) == "no" and "in refuse" in refusal.value.__notes__[0]
    with pytest.raises(TimeoutError, match="inner") as inner:
        answer(handle.expire.remote())
    assert not isinstance(inner.value, CallTimeout)
    with pytest.raises(CallTimeout, match=r"0\.2 s.*tests\.patience"):
        cluster.call(handle.sleep.remote(600), 0.2, "tests.patience")

    async def wait() -> None:
        with pytest.raises(CallTimeout, match=r"tests\.patience"):
            await cluster.call_async(handle.sleep.remote(600), 0.2, "tests.patience")
        with pytest.raises(TimeoutError, match="inner"):
            await Link("honest").call("expire")
        assert await Link("honest").call("echo", {"a": b"bytes"}) == {"a": b"bytes"}

    asyncio.run(wait())
    start("other")
    assert Link("honest").call_blocking("ask", "other", 7) == 7  # worker to worker
    cluster.kill("honest")
    cluster.kill("other")


@pytest.mark.slow
def test_the_cluster_says_what_it_has(ray_cluster: None) -> None:
    assert cluster.nodes() == [Node(cpus=2.0, gpus=1.0)]
    data = start("data", role="data")
    answer(data.ping.remote())
    cluster.kill("data")


@pytest.mark.slow
async def test_items_come_one_by_one_and_an_error_as_itself(ray_cluster: None) -> None:
    start("counter")
    link = Link("counter")
    assert [item async for item in link.stream("count", 3, 0.1)] == [0, 1, 2]
    async with aclosing(link.stream("count", 2, 600.0)) as items:
        assert await anext(items) == 0, "the first does not wait for the others"
    with pytest.raises(InputError, match="enough"):
        _ = [item async for item in link.stream("count", 2, 0.0, True)]
    with pytest.raises(WorkerUnavailable):
        _ = [item async for item in Link("nobody").stream("count", 1, 0.0)]
    cluster.kill("counter")


@pytest.mark.slow
async def test_a_stream_that_nobody_reads_any_more_ends_where_it_stands(ray_cluster: None) -> None:
    start("counter")
    link = Link("counter")
    async with aclosing(link.stream("count", 1000, 0.1)) as items:
        assert await anext(items) == 0
        assert await link.call("counters") == 1
    limit = time.monotonic() + 60
    while await link.call("counters"):
        assert time.monotonic() < limit, "it goes on"
        await asyncio.sleep(0.1)
    with pytest.raises(CallTimeout, match=r"raise tests\.timeout"):
        _ = [item async for item in link.stream("count", 3, 30.0, timeout_seconds=1.0, setting="tests.timeout")]
    cluster.kill("counter")


@pytest.mark.slow
async def test_a_stream_ends_with_its_worker(ray_cluster: None) -> None:
    handle = start("counter")
    pid = answer(handle.ping.remote()).pid
    with pytest.raises(WorkerDied):
        async for item in Link("counter").stream("count", 1000, 0.1):
            if item == 1:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_what_is_free_is_what_actors_leave(ray_cluster: None) -> None:
    handle = cluster.spawn(Echo, "large", cpus=1.5, args=(300.0,))
    answer(handle.ping.remote())
    assert until(lambda: sum(node.cpus for node in cluster.free()) <= 0.5, 20)
    cluster.kill("large")
    assert until(lambda: sum(node.cpus for node in cluster.free()) > 0.5, 20)


@pytest.mark.slow
def test_room_is_set_aside_for_all_workers_of_a_job_or_for_none(ray_cluster: None) -> None:
    def room() -> float:
        return sum(node.cpus for node in cluster.free())

    assert until(lambda: room() == 2, 20), "what ran before has left"
    reservations.reserve("first", [{"CPU": 1.0, "GPU": 0.0}], "pack")
    assert reservations.reserved("first", 10)
    shared = Demand("both", 0.2 + 0.1, roles=("sampler", "learner")).resources()
    reservations.reserve("second", [shared, {"CPU": 0.9}], "pack")
    assert until(lambda: room() == 1, 20)
    assert not reservations.reserved("second", 1) and room() == 1, (
        "half of it is not held while the other half is missing"
    )
    reservations.release("first")
    assert reservations.reserved("second", 10) and until(lambda: room() == pytest.approx(0.8), 10)

    pair = [start(name, role=name, bundle=("second", 0)) for name in ("sampler", "learner")]
    pids = [answer(worker.ping.remote()).pid for worker in pair]
    assert room() == pytest.approx(0.8), "they are in what was set aside"
    reservations.reserve("second", [shared, {"CPU": 0.9}], "pack")
    assert all(alive(pid) for pid in pids), "who asks again finds what it has"
    reservations.release("second")
    assert until(lambda: room() == 2 and not any(alive(pid) for pid in pids), 20)
    reservations.release("second")


def test_a_call_timeout_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.CALL_TIMEOUT_VARIABLE, "soon")
    with pytest.raises(InputError, match="SPARRING_CALL_TIMEOUT_SECONDS: 'soon'"):
        cluster._patience(None, None)


async def test_a_cancellation_is_not_lost_when_the_answer_comes_at_the_same_time() -> None:
    ref: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    caller = asyncio.ensure_future(cluster.call_async(ref, SECONDS, "tests.timeout"))
    await asyncio.sleep(0)
    ref.set_result(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


def test_ray_keeps_its_session_where_the_path_is_short_enough(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    assert len(str(cluster._temp_dir(deep))) <= cluster.LONGEST_TEMP_DIR


def test_a_cluster_that_asks_for_its_token_says_how_to_give_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise cluster.ray_errors.AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", refuse)
    with pytest.raises(
        InputError, match=r"head:6379 \(SPARRING_RAY_ADDRESS\) asks for its token; set RAY_AUTH_MODE=token"
    ):
        cluster.connect("head:6379", home=tmp_path)


@pytest.mark.parametrize("failures", [1, cluster.START_TRIES])
def test_a_local_ray_that_takes_too_long_to_start_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failures: int
) -> None:
    starts: list[dict[str, Any]] = []

    def start_late(**options: Any) -> None:
        starts.append(options)
        if len(starts) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", start_late)
    if failures < cluster.START_TRIES:
        cluster.connect(None, home=tmp_path)
    else:
        with pytest.raises(InputError, match="did not start in 3 tries: this machine is too busy"):
            cluster.connect(None, home=tmp_path)
    assert len(starts) == min(failures + 1, cluster.START_TRIES)


def test_another_fault_of_a_local_ray_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", fail)
    with pytest.raises(RuntimeError, match="no space"):
        cluster.connect(None, home=tmp_path)


def test_a_worker_whose_lease_has_lapsed_takes_no_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Lapsing(LeasedWorker):
        def lease_lapsed(self) -> None:
            with pytest.raises(WorkerUnavailable, match="nobody renewed its lease"):
                self.renew_lease(60)
            with pytest.raises(WorkerUnavailable, match="Lapsing ends"):
                self.ping()
            refused.append(True)

    refused: list[bool] = []
    monkeypatch.setattr("workers.leased.os._exit", lambda code: ended.set())
    Lapsing(0.05)
    assert ended.wait(30) and refused


def test_demands_that_fit_are_accepted() -> None:
    demands = [
        Demand("resources.sampler", 0.6),
        Demand("resources.learner", 0.5),
        Demand("resources.scorer", 0.3, count=3),
    ]
    check_capacity(demands, [Node(2.0)])


def test_each_worker_goes_to_a_machine_of_its_role() -> None:
    demands = [
        Demand("resources.learner", 1.0, roles=("learner",)),
        Demand("resources.sampler", 1.0, count=2, roles=("sampler",)),
        Demand("resources.scorer", 1.0),
    ]
    check_capacity(demands, [Node(2.0, roles=frozenset({"sampler"})), Node(2.0, roles=frozenset({"learner", "data"}))])


def test_a_machine_carries_what_its_resources_say() -> None:
    assert roles.carried({"CPU": 2.0, "sparring_data": 0.98, "sparring_scorer": 1.0}) == {"data", "scorer"}
    assert roles.carried({"CPU": 2.0}) == set()
    assert roles.carried(roles.offered()) == set(roles.ROLES)


@pytest.mark.parametrize(
    ("demands", "cluster_nodes", "words"),
    [
        ([Demand("resources.sampler", 1.0, count=2), Demand("resources.learner", 0.5)], [Node(2.0)], "2.5 cpus.*has 2: resources.sampler 1 x 2, resources.learner 0.5"),
        ([Demand("resources.learner", 1.0, gpus=1.0)], [Node(8.0)], "1 gpus.*has 0: resources.learner 1"),
        ([Demand("resources.sampler", 3.0)], [Node(2.0), Node(2.0)], "resources.sampler: 3 cpus and 0 gpus are asked for on one machine"),
        ([Demand("resources.sampler", 1.0)], [], "no machines"),
        ([Demand("resources.sampler", 1.0, roles=("sampler",))], [Node(2.0, roles=frozenset({"data", "learner"}))], r"no machine of the cluster carries the role sampler; start one with .*'\{\"sparring_sampler\": 1\}'"),
        (
            [Demand("resources.sampler", 1.5, roles=("sampler",)), Demand("resources.learner", 2.0, roles=("learner",))],
            [Node(1.0, roles=frozenset({"sampler"})), Node(4.0, roles=frozenset({"data", "learner"}))],
            r"resources.sampler: 1.5 cpus .*no machine with the role sampler has that.*the largest has 1 and 0",
        ),
    ],
)  # fmt: skip
def test_demands_that_do_not_fit_are_refused_by_name(
    demands: list[Demand], cluster_nodes: list[Node], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_capacity(demands, cluster_nodes)
