"""Names of what can be chatted with: a job's versions, by module, and its base. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from learner.errors import InputError
from learner.records import Module

FORMS = "JOB, JOB@VERSION, JOB:slow, JOB:slow@VERSION or JOB:base"

_NAME = re.compile(r"(?P<job>[^:@\s]+)(?::(?P<part>fast|slow|base))?(?:@(?P<version>\d{1,9}))?")


class UnknownModel(InputError):
    """Nothing of that name can be chatted with."""


@dataclass(frozen=True)
class ModelName:
    """One of a job's policies. Without a version: the one that the job stands for; ``base``: the model without an adapter."""

    job_id: str
    module: Module = "fast"
    version: int | None = None
    base: bool = False

    def __str__(self) -> str:
        if self.base:
            return f"{self.job_id}:base"
        module = "" if self.module == "fast" else f":{self.module}"
        return f"{self.job_id}{module}" + ("" if self.version is None else f"@{self.version}")


def parse_model(name: str) -> ModelName:
    """What a request's ``model`` names.

    Raises:
        UnknownModel: it is no such name.
    """
    found = _NAME.fullmatch(name)
    if found is None or (found["part"] == "base" and found["version"] is not None):
        raise UnknownModel(f"model: {name!r} is not a model's name; write {FORMS}")
    return ModelName(
        job_id=found["job"],
        module="slow" if found["part"] == "slow" else "fast",
        version=None if found["version"] is None else int(found["version"]),
        base=found["part"] == "base",
    )


def parse_variant(job_id: str, variant: int | str) -> ModelName:
    """One of a job's policies by what follows the job in its name: ``3``, ``slow``, ``slow@3`` or ``base``.

    Raises:
        UnknownModel: it is no such name.
    """
    text = str(variant)
    separator = "@" if text.isdecimal() else ":"
    try:
        return parse_model(f"{job_id}{separator}{text}")
    except UnknownModel:
        raise UnknownModel(
            f"versions: {variant!r} is not one of a job's policies; write a version's number, slow, slow@VERSION or base"
        ) from None
