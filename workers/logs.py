"""Each worker writes its own log file, with whatever its engine prints."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def write_to(folder: Path, worker: str) -> logging.Logger:
    """Send this process's output, its children's included, to ``{folder}/{worker}-{attempt}.log``.

    Attempts count up, so that a restarted worker does not overwrite what the dead one said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attempt = sum(1 for _ in folder.glob(f"{worker}-*.log")) + 1
    descriptor = os.open(folder / f"{worker}-{attempt}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr, force=True
    )
    return logging.getLogger(worker)
