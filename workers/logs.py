"""Each worker writes its own log: as text with whatever its engine prints, and as JSON lines, one for each record."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"

MORE = ("request_id", "group_id")
"""What a record may say beside its message, through ``extra``."""


class JsonLines(logging.Formatter):
    """One JSON object for each record: time (UTC), level, logger, message; what is given for all of them; `MORE` and a traceback where known."""

    def __init__(self, **always: str) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        time = datetime.fromtimestamp(record.created, UTC)
        said: dict[str, str] = {
            "time": time.isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **{name: str(value) for name in MORE if (value := getattr(record, name, None)) is not None},
        }
        if record.exc_text or record.exc_info:
            said["exception"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(said, ensure_ascii=False)


def write_to(folder: Path, worker: str) -> logging.Logger:
    """Send this process's output, its children's included, to ``{folder}/{worker}-{attempt}.log``, and its log to a ``.jsonl`` beside it.

    Attempts count up, so that a restarted worker does not overwrite what the dead one said. The folder lies in the job's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attempt = sum(1 for _ in folder.glob(f"{worker}-*.log")) + 1
    path = folder / f"{worker}-{attempt}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    text, lines = logging.StreamHandler(sys.stderr), logging.FileHandler(path.with_suffix(".jsonl"), encoding="utf-8")
    text.setFormatter(logging.Formatter(TEXT))
    job_id = folder.parent.name
    lines.setFormatter(JsonLines(job_id=job_id, worker=worker.removeprefix(f"{job_id}-")))
    logging.basicConfig(level=logging.INFO, handlers=[text, lines], force=True)
    return logging.getLogger(worker)
