"""What this machine has, found without torch, so that a local job that it cannot hold is refused before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

SERVICE_CPUS = 0.2
"""CPU share kept for the controller, the replay queue and the version store."""


@dataclass(frozen=True)
class Machine:
    """CPUs, NVIDIA GPUs and main memory."""

    cpus: int
    gpus: int
    memory_bytes: int

    @classmethod
    def here(cls) -> Machine:
        """The machine that this process runs on."""
        gpus = sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))
        return cls(cpus=os.cpu_count() or 1, gpus=gpus, memory_bytes=int(psutil.virtual_memory().total))
