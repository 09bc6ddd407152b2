"""A world small enough for end-to-end tests: a random Llama, a PairRM trained for a few steps, and prompts; and the command line to run it.

Nothing is faked: vLLM, Ray, PairRM, SQLite and the command line are the real ones, only the models are small.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import yaml

from learner.records import Prompt
from services.client import ServiceAbsent
from services.jobs.layout import JobPaths
from services.jobs.records import JobEvent, JobRecord
from services.jobs.report import all_events
from services.jobs.store import JobStore
from services.settings import Settings
from tests.workers.sampler_world import tiny_model
from workers.replay.ledger import ReplayLedger
from workers.replay.rows import LedgerCounts

PROMPTS = 120
MARK = "SPARRING_TEST_MARK"
"""Environment variable that a command's whole process tree inherits."""

VLLM_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm"
"""Where vLLM remembers what it found out about a family of models, for which it starts a process that imports vLLM once more."""

LONGEST_NAME = 15
"""The kernel keeps no more of a process's name."""

RUN_SECONDS = 600
"""Longest run of one command; the machine may be busy."""


@dataclass(frozen=True)
class World:
    """The folders of a small world."""

    root: Path

    @property
    def policy(self) -> Path:
        return self.root / "policy"

    @property
    def pairrm(self) -> Path:
        return self.root / "pairrm"


def build_world(root: Path) -> World:
    """Write the policy, the scorer and the prompts."""
    from workers.scorers.preferences import PreferencePair
    from workers.scorers.training import train_pairrm
    from workers.scorers.training_config import TrainScorerConfig

    world = World(root)
    tiny_model(world.policy)
    for name, first, count in (("prompts", 0, PROMPTS), ("held_out", PROMPTS, 24)):
        lines = [{"id": f"p{n}", "prompt": f"Tell me about {n * 7919 % 1000}."} for n in range(first, first + count)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = [
        PreferencePair(
            Prompt.of(f"pair-{n}", f"Tell me about {n}."),
            "a" * (1 + n % 9),
            "b" * (1 + n % 7),
            preference_b=float(n % 2),
        )
        for n in range(64)
    ]
    train_pairrm(TrainScorerConfig(steps=4, batch_size=16, threads=1), pairs, world.pairrm)
    return world


def job(world: World, **overrides: Any) -> dict[str, Any]:
    """A job of three small rounds; nested keys of ``overrides`` replace single values."""
    spec: dict[str, Any] = {
        "name": "tiny",
        "policy": {"model": str(world.policy)},
        "prompts": {"source": str(world.root / "prompts.jsonl")},
        "scorer": {"model": {"kind": "pairrm", "model": str(world.pairrm)}},
        "objective": {"kind": "sppo", "beta": 0.05},
        "adapters": {"rank": 8},
        "optimizer": {"learning_rate": 2e-3, "schedule": "constant", "warmup_ratio": 0.0},
        "sampling": {"answers": 3, "max_tokens": 12},
        "schedule": {"rounds": 2, "prompts_per_round": 12, "prompts_per_step": 4},
        "evaluation": {"prompts": {"source": str(world.root / "held_out.jsonl")}, "count": 24},
        "resources": {
            "sampler": {"cpus": 0.5, "kv_cache_gib": 0.25, "max_running_requests": 64},
            "scorer": {"cpus": 0.2},
            "learner": {"cpus": 0.3},
            "fleet": {"heartbeat_seconds": 0.3},
        },
        "seed": 7,
    }
    return _merged(spec, overrides)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        result[key] = (
            _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        )
    return result


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    output: str


class Command:
    """A running `sparring` command, in a session of its own as in a terminal."""

    def __init__(self, *arguments: str | Path, output: IO[str] | int = subprocess.PIPE, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, **environment, MARK: self.mark}
        _share_vllm_cache(Path(environment["SPARRING_HOME"]))
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "sparring"), *map(str, arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def interrupt(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def processes(self) -> list[psutil.Process]:
        """Everything that the command started and that still runs, itself left out: Ray, the workers, vLLM's own processes."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if process.pid != self.process.pid]

    def named(self, text: str) -> list[psutil.Process]:
        """Those of them whose name or command line holds ``text``."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if text in " ".join([process.name(), *process.cmdline()]):
                    found.append(process)
        return found

    def workers(self, role: str) -> list[psutil.Process]:
        """The processes of the workers whose class begins so."""
        return self.named(f"ray::{role}"[:LONGEST_NAME])

    def worker(self, role: str) -> psutil.Process:
        """The one worker of that kind, once there is one."""
        (found,) = wait_for(lambda: found if len(found := self.workers(role)) == 1 else None, f"one {role}", 60)
        return found

    def leaves_nothing(self, seconds: float = 60) -> bool:
        """Whether everything that it started is gone, or goes within so many seconds."""
        limit = time.monotonic() + seconds
        while self.processes() and time.monotonic() < limit:
            time.sleep(0.2)
        return not self.processes()

    def wait(self, seconds: float = RUN_SECONDS) -> Ended:
        """Its end.

        Raises:
            AssertionError: it did not end in time; its output is in the message.
        """
        try:
            output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            output, _ = self.process.communicate()
            raise AssertionError(f"the command did not end in {seconds} s:\n{(output or '')[-4000:]}") from None
        return Ended(self.process.returncode, output or "")


def _share_vllm_cache(home: Path) -> None:
    """A home of these tests is new; what vLLM knows of the machine's models is not."""
    VLLM_CACHE.mkdir(parents=True, exist_ok=True)
    link = home / "cache" / "vllm"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(VLLM_CACHE, target_is_directory=True)


def run_job(folder: Path, spec: dict[str, Any], **environment: str) -> Ended:
    """`sparring run` a job to its end."""
    return start_job(folder, spec, **environment).wait()


def start_job(folder: Path, spec: dict[str, Any], **environment: str) -> Command:
    """`sparring run` a job."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    return Command("run", file, **environment)


class Outcome:
    """What a job left behind, read as anybody could: from the job store, the replay rows and the version folders."""

    def __init__(self, home: Path | None = None) -> None:
        self.settings = Settings.load() if home is None else Settings(home=home)
        self.store = JobStore(self.settings.store_url)

    @property
    def job(self) -> JobRecord:
        return self.store.list(limit=1)[0]

    @property
    def paths(self) -> JobPaths:
        return JobPaths(self.settings.home, self.job.id)

    @property
    def counts(self) -> LedgerCounts:
        with self.ledger() as ledger:
            return ledger.counts()

    def ledger(self) -> ReplayLedger:
        return ReplayLedger(self.paths.replay_database, 1, 1 << 20, read_only=True)

    def events(self, kind: str | None = None) -> list[JobEvent]:
        return [event for event in all_events(self.store, self.job.id) if kind is None or event.kind == kind]

    def digests(self) -> list[str]:
        return [version.digest for version in self.store.versions(self.job.id)]


def wait_for(condition: Any, what: str, seconds: float = 600) -> Any:
    """Poll until ``condition()`` is truthy, and return it; errors of a store or a service that is not there yet count as not yet."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if value := condition():
                return value
        except (IndexError, FileNotFoundError, httpx.TransportError, ServiceAbsent):
            pass
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s in vain for {what}")
