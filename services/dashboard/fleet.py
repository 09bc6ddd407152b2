"""What a job's events say about its samplers: which version each proved, by which digest, and what happened to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from services.jobs.records import JobEvent


@dataclass
class SamplerView:
    """One sampler. ``canary`` says how sure the newest proof was."""

    name: str
    state: str = "starting"
    proved: dict[str, tuple[int, str]] = field(default_factory=dict)
    canary: str = ""
    restarts: int = 0
    failed_proofs: int = 0
    since: datetime | None = None


@dataclass
class FleetView:
    """The samplers of a job, in order of their names, and the deaths of all its workers."""

    samplers: dict[str, SamplerView] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    def add(self, event: JobEvent) -> None:
        """Take in one event; most say nothing about the fleet."""
        data = event.data
        match event.kind:
            case "state":
                if data.get("state") == "validating":  # a new attempt has new workers
                    self.samplers.clear()
            case "version_proved":
                sampler = self._sampler(event, data.get("sampler"))
                sampler.state, sampler.canary = "proved", str(data.get("canary", ""))
                version = data.get("version")
                if isinstance(version, int):
                    sampler.proved[str(data.get("module", "fast"))] = (version, str(data.get("digest", "")))
            case "proof_failed":
                sampler = self._sampler(event, data.get("sampler"))
                sampler.state = "not proved"
                sampler.failed_proofs += 1
            case "sampler_fenced":
                self._sampler(event, data.get("sampler")).state = "fenced"
            case "worker_died" | "worker_restarted":
                self._worker(event)

    def _worker(self, event: JobEvent) -> None:
        name, died = str(event.data.get("worker")), event.kind == "worker_died"
        if not died:
            self.restarts[name] = self.restarts.get(name, 0) + 1
        if event.data.get("role") == "sampler":
            sampler = self._sampler(event, name)
            sampler.state = "dead" if died else "up, proves nothing yet"
            sampler.proved.clear()
            sampler.restarts += not died

    def _sampler(self, event: JobEvent, name: object) -> SamplerView:
        sampler = self.samplers.setdefault(str(name), SamplerView(str(name)))
        sampler.since = event.time
        return sampler
