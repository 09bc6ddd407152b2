"""Each worker writes its own log: as text with whatever its engine prints, and as JSON lines, one for each record.

On another machine than the job's they lie in a folder there, from which the controller fetches what it has not yet (`unread`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"

MORE = ("request_id", "group_id")
"""What a record may say beside its message, through ``extra``."""

MARK = ".mark"
"""File with a random name, by which a job's own folder of logs is told from one that has its path on another machine."""

PIECE_BYTES = 1 << 18
"""Most that is fetched of a file at a time."""

_own: tuple[Path, str] | None = None
"""This process's folder and worker."""


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
    global _own
    _own = folder, worker
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


def mark(folder: Path) -> str:
    """What is written in the folder's mark, which is made where there is none."""
    path = folder / MARK
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f"{MARK}-{uuid.uuid4().hex}"
        aside.write_text(uuid.uuid4().hex)
        aside.replace(path)  # whole at once: workers read it at any time
    return path.read_text()


def unread(mark: str, machine: str, sizes: Mapping[str, int]) -> dict[str, tuple[int, bytes]] | None:
    """What this process's worker has written on this machine and the job's folder has not, the dead that had its name before included.

    Args:
        mark: of the job's folder.
        machine: this machine's name, which becomes part of the names, since each machine counts its own attempts.
        sizes: name to bytes, of the files that the job's folder has from other machines.

    Returns name to offset and at most `PIECE_BYTES` from there on; nothing where this worker writes to the job's folder itself.
    """
    if _own is None:
        return None
    folder, worker = _own
    try:
        if (folder / MARK).read_text() == mark:
            return None
    except FileNotFoundError:
        pass
    pieces = {}
    for path in sorted(folder.iterdir()):
        if not re.fullmatch(rf"{re.escape(worker)}-\d+\.(log|jsonl)", path.name):
            continue
        name = f"{path.stem}@{machine}{path.suffix}"
        offset = sizes.get(name, 0)
        with path.open("rb") as file:
            file.seek(offset)
            if piece := file.read(PIECE_BYTES):
                pieces[name] = (offset, piece)
    return pieces
