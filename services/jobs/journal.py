"""What the controller writes down about its job. On disk before it is acknowledged (rule 11)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from learner.records import VersionManifest
from services.jobs.layout import JobPaths
from services.jobs.records import JobError
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction
from services.jobs.store import JobStore
from services.jobs.trackers import Forwarder, open_tracker


class Journal:
    """One job's side of the job store."""

    def __init__(self, store: JobStore, job_id: str, log: logging.Logger) -> None:
        self.store, self.job_id, self.log = store, job_id, log
        self._forwarders: list[Forwarder] = []
        self._told: tuple[float, str] | None = None

    def event(self, kind: str, message: str, /, **data: Any) -> None:
        """Something happened that people want to know."""
        self.log.info("%s: %s", kind, message, extra={"group_id": data.get("group_id")})
        self.store.append_event(self.job_id, kind, message, data)

    def warning(self, message: str) -> None:
        """Something went wrong beside the job. Never raises: the log has what could not be written, as when the job was deleted."""
        try:
            self.event("warning", message)
        except Exception:
            self.log.exception("a warning was not written down")

    def metrics(
        self, values: Mapping[str, float], *, version: int | None = None, learner_step: int | None = None
    ) -> None:
        """Numbers of this moment."""
        self.store.add_metrics(self.job_id, values, version=version, learner_step=learner_step)
        for forwarder in self._forwarders:
            forwarder.metrics(values, version=version, learner_step=learner_step)

    def track(self, spec: JobSpec, paths: JobPaths) -> None:
        """Tell the job's trackers from now on."""
        for name in spec.output.trackers:
            build = partial(open_tracker, name, self.job_id, spec, paths)
            self._forwarders.append(Forwarder(name, build, self.warning))

    def end_tracking(self, report: Path) -> None:
        """Give the trackers the report, and let them finish. Blocks for a while where one is slow."""
        for forwarder in self._forwarders:
            if report.is_file():
                forwarder.keep(report)
            forwarder.close()

    def progress(self, fraction: float, stage: str) -> None:
        """How far the job is, in 0..1, and what it is doing. Told only when it shows, since every write waits for the disk."""
        if (told := (round(fraction, 3), stage)) == self._told:
            return
        self._told = told
        self.store.set_progress(self.job_id, fraction, stage)

    def state(self, new: JobState, message: str | None = None, error: JobError | None = None) -> None:
        """The job's new state."""
        self.log.info("state %s%s", new, f": {error.message}" if error else "")
        self.store.transition(self.job_id, new, message=message, error=error)

    def version(self, manifest: VersionManifest) -> None:
        """A version was published."""
        self.store.add_version(
            self.job_id,
            manifest.version,
            digest=manifest.digest,
            learner_step=manifest.learner_step,
            module=manifest.module,
        )
        self.event(
            "version_published",
            f"version {manifest.version} at step {manifest.learner_step}, digest {manifest.digest[:12]}",
            version=manifest.version,
            digest=manifest.digest,
            learner_step=manifest.learner_step,
            bytes=sum(entry.bytes for entry in manifest.files.values()),
        )

    def request(self) -> RequestedAction | None:
        """What somebody asked of the job."""
        return self.store.take_request(self.job_id)
