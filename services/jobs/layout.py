"""Where a job's files lie on the data node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobPaths:
    """The folders and files of one job under Sparring's home."""

    home: Path
    job_id: str

    @property
    def root(self) -> Path:
        """Everything of this job."""
        return self.home / "jobs" / self.job_id

    @property
    def deleted(self) -> Path:
        """Where everything of this job lies while it is deleted."""
        return self.home / "jobs" / f".deleted-{self.job_id}"

    @property
    def replay_database(self) -> Path:
        """The replay ledger (SQLite)."""
        return self.root / "replay.sqlite"

    @property
    def versions(self) -> Path:
        """Published versions: ``{module}/v{n}/``."""
        return self.root / "versions"

    @property
    def logs(self) -> Path:
        """One log file for each worker and attempt."""
        return self.root / "logs"

    @property
    def command_lock(self) -> Path:
        """Held by the command that runs the job in the foreground."""
        return self.root / "command.lock"

    @property
    def report(self) -> Path:
        """The report with curves, written when the job ends."""
        return self.root / "report.html"
