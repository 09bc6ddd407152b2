"""What can go wrong between processes. Free of ray, so that decision code can name these errors."""

from __future__ import annotations


class WorkerError(RuntimeError):
    """A call to a worker failed for a reason that lies in the machinery, not in what was asked."""


class WorkerDied(WorkerError):
    """The worker's process is gone and will not answer again."""


class WorkerUnavailable(WorkerError):
    """The worker cannot be reached or placed now; it may answer later."""


class CallTimeout(TimeoutError):
    """A worker did not answer in time. The message names the setting to change (rule 9)."""
