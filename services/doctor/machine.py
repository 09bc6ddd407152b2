"""Checks of what a machine has: memory, shared memory, disk, open files, and the model that was asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from services.doctor.facts import Facts
from services.doctor.findings import Finding, Status

GIB = 1 << 30
UNLIMITED = -1

MEMORY = (2 * GIB, 8 * GIB)
"""Free bytes below which jobs fail, and below which only small ones run. So the others."""

SHARED_MEMORY = (64 << 20, GIB)
DISK = (2 * GIB, 20 * GIB)
OPEN_FILES = (1024, 8192)


def check_machine(facts: Facts) -> Iterator[Finding]:
    """Everything that a machine must have enough of."""
    yield _measured(
        facts,
        "memory",
        facts.memory_free,
        MEMORY,
        f"{_gib(facts.memory_free)} of {_gib(facts.memory)} free",
        "end other programs, or take a machine with more; a 1 B model in float32 needs about 12 GiB",
    )
    if facts.shared_memory is None:
        yield Finding(
            host=facts.host,
            subject="/dev/shm",
            status=Status.PROBLEM,
            found="there is none, and adapters are loaded through it",
            advice="mount one: mount -t tmpfs -o size=2g tmpfs /dev/shm",
        )
    else:
        yield _measured(
            facts,
            "/dev/shm",
            facts.shared_memory,
            SHARED_MEMORY,
            _gib(facts.shared_memory),
            "give a container more: --shm-size=2g, or shm_size in docker-compose.yml",
        )
    yield _home(facts)
    yield _measured(
        facts,
        "disk",
        facts.disk_free,
        DISK,
        f"{_gib(facts.disk_free)} free at {facts.home}",
        "delete jobs that have ended (sparring delete), set output.keep_versions to best-and-newest, or set SPARRING_HOME to a larger disk",
    )
    files = facts.open_files
    yield _measured(
        facts,
        "open files",
        1 << 62 if files == UNLIMITED else files,
        OPEN_FILES,
        "unlimited" if files == UNLIMITED else str(files),
        "raise the limit: ulimit -n 65536, or LimitNOFILE in the service's unit; Ray opens a file for each connection",
    )
    if facts.model is not None:
        yield Finding(host=facts.host, subject="model", status=Status.OK, found=facts.model)
    if facts.model_fault is not None:
        advice = "put it at this path on every machine that runs a worker, or name one on the Hugging Face hub"
        yield Finding(host=facts.host, subject="model", status=Status.PROBLEM, found=facts.model_fault, advice=advice)


def _home(facts: Facts) -> Finding:
    return Finding(
        host=facts.host,
        subject="home",
        status=Status.OK if facts.home_writable else Status.PROBLEM,
        found=facts.home if facts.home_writable else f"{facts.home} cannot be written to",
        advice="" if facts.home_writable else "set SPARRING_HOME to a folder that this user may write to",
    )


def _measured(facts: Facts, subject: str, value: int, bounds: tuple[int, int], found: str, advice: str) -> Finding:
    """A problem below the first bound, a warning below the second."""
    problem, warning = bounds
    status = Status.PROBLEM if value < problem else Status.WARNING if value < warning else Status.OK
    return Finding(
        host=facts.host, subject=subject, status=status, found=found, advice="" if status is Status.OK else advice
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
