"""How a job can end other than well."""

from __future__ import annotations


class JobFailure(RuntimeError):
    """The job cannot go on.

    Args:
        code: a stable word for programs.
        message: one sentence for people, with the numbers, and the setting to change where there is one.
        param: path of the specification's field at fault.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class JobCancelled(Exception):
    """Somebody asked for the job's end. Its newest version stays."""
