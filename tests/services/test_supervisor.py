"""Proofs: a sampler proves its opponent's version before its own, once, and is ready only then (rules 4, 6 and 10)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from learner.records import CanaryText, Module, PolicyVersion, VersionManifest
from services.jobs.spec import JobSpec
from services.jobs.supervisor import Supervisor
from workers.config import FleetConfig
from workers.fleet import Fleet
from workers.messages import LoadProof

TEXT = CanaryText(token_ids=(1, 2, 3), current=(-1.0, -1.0), base=(-3.0, -3.0), previous=(-2.0, -2.0))


def manifest(version: int) -> VersionManifest:
    return VersionManifest(
        job_id="job",
        module="fast",
        version=version,
        learner_step=version,
        digest=f"digest-{version}",
        files={},
        base_model="m",
        rank=1,
        canary=(TEXT if version else TEXT.model_copy(update={"previous": None}),),
        created_at=datetime.now(UTC),
    )


class Sampler:
    """Stands for a sampler's link: loads what it is told to, with the digests that it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.modules: list[str] = []
        self.digests: dict[int, str] = {}
        self.slow_digest: str | None = None

    async def call(self, method: str, version: int, module: Module, **_: Any) -> Any:
        self.calls.append((method, version))
        self.modules.append(module)
        if method != "load":
            return None
        digest = self.digests.get(version, f"digest-{version}")
        if module == "slow" and self.slow_digest is not None:
            digest = self.slow_digest
        return LoadProof(
            sampler="s0", module=module, version=version, digest=digest, measured=(TEXT.current,), seconds=0
        )


class Store:
    async def call(self, method: str, module: str, version: int) -> VersionManifest:
        assert (method, module) == ("manifest", "fast")
        return manifest(version)


class World:
    """A supervisor with one sampler that has started; the opponent is version 0."""

    def __init__(self, logs: Path) -> None:
        self.sampler, self.events = Sampler(), list[tuple[str, int]]()
        crew = SimpleNamespace(
            members=(),
            paths=SimpleNamespace(logs=logs),
            versions=SimpleNamespace(link=Store()),
            member=lambda name: SimpleNamespace(name=name, link=self.sampler),
        )
        journal = SimpleNamespace(
            log=logging.getLogger("test"), event=lambda kind, *_, **data: self.events.append((kind, data["version"]))
        )
        spec = JobSpec.model_validate(
            {
                "policy": {"model": "m"},
                "prompts": {"source": "p.jsonl"},
                "objective": {"kind": "dpo"},
                "sampling": {"opponent": "start"},
            }
        )
        self.fleet = Fleet(FleetConfig(), ("s0",))
        self.fleet.started("s0")
        self.supervisor = Supervisor(crew, self.fleet, journal, spec, sampler_died=None)  # type: ignore[arg-type]

    async def load(self, version: int, *, slow: bool = False) -> list[tuple[str, int]]:
        self.sampler.calls.clear()
        self.sampler.modules.clear()
        self.fleet.loading("s0", version)
        parts = (manifest(version), *([manifest(version).model_copy(update={"module": "slow"})] if slow else []))
        await self.supervisor._load("s0", PolicyVersion(manifests=parts))
        return list(self.sampler.calls)


async def test_the_opponent_is_loaded_and_proved_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await world.load(0) == [("load", 0)]
    assert await world.load(1) == [("load", 1)], "it was proved as the policy"
    assert world.fleet.serving(1) == ["s0"]


async def test_a_restarted_sampler_proves_its_opponent_before_it_is_ready(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await world.load(3) == [("load", 0), ("load", 3)]
    assert world.events == [("version_proved", 0), ("version_proved", 3)] and world.fleet.serving(3) == ["s0"]
    assert await world.load(4) == [("load", 4)]


async def test_a_sampler_whose_opponent_is_wrong_does_not_become_ready(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sampler.digests[0] = "another"
    assert await world.load(3) == [("load", 0), ("forget", 0)]
    assert world.events == [("proof_failed", 0)] and world.fleet.serving(3) == [] and world.fleet.to_load(3) == ["s0"]
    world.sampler.digests.clear()
    assert await world.load(3) == [("load", 0), ("load", 3)]
    assert world.fleet.serving(3) == ["s0"]


async def test_a_version_of_two_adapters_is_proved_when_both_are(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await world.load(0, slow=True) == [("load", 0), ("load", 0)]
    assert world.sampler.modules == ["fast", "slow"] and world.fleet.serving(0) == ["s0"]
    world.sampler.slow_digest = "another"
    await world.load(1, slow=True)
    assert world.sampler.modules == ["fast", "slow", "slow"]
    assert world.fleet.serving(1) == [] and world.events[-1] == ("proof_failed", 1)
