"""The queue's and the store's actors on a real Ray: everything comes back after SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from replay_samples import group, ticket

from learner.digests import adapter_digest, sha256
from learner.records import FileEntry, VersionManifest
from workers import cluster, reservations
from workers.cluster import Link, WorkerDied, WorkerUnavailable
from workers.config import QueueConfig
from workers.replay.actor import ReplaySetup, ReplayWorker
from workers.replay.rows import LedgerError
from workers.versions.actor import CONCURRENCY, VersionsSetup, VersionsWorker
from workers.versions.integrity import TamperedVersionError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    cluster.connect(None, cpus=2, home=folder)
    yield folder
    cluster.disconnect()


def start_queue(home: Path, lease_seconds: float = 300.0) -> Link:
    setup = ReplaySetup(
        "queue", "room", home / "logs", home / "replay.sqlite", QueueConfig(max_groups=8, put_timeout_seconds=60)
    )
    cluster.spawn(ReplayWorker, "queue", cpus=0.1, args=(setup, lease_seconds), role="data")
    return Link("queue")


def wanted(count: int, **options: Any) -> dict[str, Any]:
    return {"count": count, "newest_version": 0, "max_staleness": 0, **options}


def test_the_queue_waits_serves_and_survives_sigkill(home: Path) -> None:
    async def run() -> None:
        queue = start_queue(home)
        tickets = [ticket(i) for i in range(12)]
        assert await queue.call("admit", tickets) == 12
        puts = [asyncio.create_task(queue.call("put", group(one), None)) for one in tickets[:10]]
        batch = await queue.call("lease", **wanted(8, wait_seconds=30.0))
        assert {one.index for one in batch} <= set(range(10))
        assert batch == [group(tickets[index]) for index in sorted(one.index for one in batch)]
        assert (await queue.call("metrics"))["queue_leased_groups"] == 8
        assert await queue.call("commit", 1, 5, groups=8) == 8
        assert {await task for task in puts} == {"stored"}
        with pytest.raises(LedgerError, match="never admitted"):
            await queue.call("put", group(ticket(99)), None)
        before = await queue.call("counts")
        os.kill((await queue.call("ping")).pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await queue.call("counts")
        limit = time.monotonic() + 30
        while True:
            try:
                start_queue(home)
                assert await queue.call("counts") == before
                break
            except (WorkerDied, WorkerUnavailable):  # the name may still be the dead one's for a moment
                assert time.monotonic() < limit
        assert await queue.call("committed_version") == 1
        assert [one.index for one in await queue.call("granted")] == [10, 11]
        cluster.kill("queue")
        queue = start_queue(home)  # at once: the killed one may not have let go of the file yet
        assert await queue.call("counts") == before
        cluster.kill("queue")

    asyncio.run(run())


def test_versions_travel_as_bytes_and_tampering_is_named(home: Path) -> None:
    setup = VersionsSetup("versions", "job", home / "logs", home / "versions")
    cluster.spawn(VersionsWorker, "versions", cpus=0.1, args=(setup, 300.0), max_concurrency=CONCURRENCY, role="data")
    store = Link("versions")
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": os.urandom(2 << 20)}
    manifest = VersionManifest(
        job_id="job",
        module="fast",
        version=0,
        learner_step=0,
        digest=adapter_digest(files),
        files={name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in files.items()},
        base_model="model",
        rank=4,
        created_at=datetime.now(UTC),
    )
    assert store.call_blocking("publish", manifest, files) == manifest
    assert store.call_blocking("manifest", "fast", 0) == manifest
    assert store.call_blocking("adapter_files", "fast", 0) == files
    (home / "versions" / "fast" / "v0" / "adapter_model.safetensors").write_bytes(b"evil")
    with pytest.raises(TamperedVersionError) as caught:
        store.call_blocking("adapter_files", "fast", 0)
    assert caught.value.actual == sha256(b"evil")
    assert store.call_blocking("discard_after", "fast", -1) == [0]
    cluster.kill("versions")


def test_a_queue_without_its_controller_gives_the_room_of_the_job_back(home: Path) -> None:
    cluster.kill("queue")
    reservations.reserve("room", [{"CPU": 0.5}], "pack")
    assert reservations.reserved("room", 30)
    queue = start_queue(home, lease_seconds=12.0)
    assert queue.call_blocking("ping").lease_left_seconds > 0
    limit = time.monotonic() + 60
    while cluster.find("queue") is not None and time.monotonic() < limit:
        time.sleep(0.1)
    assert cluster.find("queue") is None and not reservations.reserved("room", 1)
