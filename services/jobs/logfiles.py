"""Reads a job's log files: the ends of the texts, and the records of all workers in the order of their times.

Each worker and attempt writes its own two files (`workers.logs`). Records come in pages; a cursor says how far each file was read, so that
none comes twice or is left out, also while workers go on writing.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from learner.errors import InputError
from learner.records import Record
from services.secrets import mask_json

BLOCK_BYTES = 1 << 16

TAIL_BYTES = 8 << 20
"""Of a file's end, that are looked at for its last lines: a progress bar can write for days without ending one."""

MOST_LINES = 50_000
"""Lines that one page looks at, however few of them are wanted."""

NO_CURSOR = "after: this is not a cursor; take `next` of the page before"

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)


class LogRecord(Record):
    """One record of a worker's log."""

    time: AwareDatetime
    level: str
    logger: str
    message: str
    job_id: str
    worker: str
    request_id: str | None = Field(
        default=None, description="of the REST request that it belongs to, where there is one"
    )
    group_id: str | None = Field(default=None, description="of the group that it is about, where there is one")
    exception: str | None = Field(default=None, description="the traceback, where there is one")


class LogPage(Record):
    """Records of all workers in the order of their times, secrets masked."""

    records: tuple[LogRecord, ...]
    next: str = Field(description="the cursor of what follows; send it as `after`, also later, when more was written")
    more: bool = Field(description="whether there is more to read already")


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, read from its end; at most `TAIL_BYTES` of it."""
    blocks: list[bytes] = []
    ends = 0
    with path.open("rb") as file:
        position = file.seek(0, 2)
        first = max(0, position - TAIL_BYTES)
        while position > first and ends <= lines:
            size = min(BLOCK_BYTES, position - first)
            position -= size
            file.seek(position)
            blocks.append(file.read(size))
            ends += blocks[-1].count(b"\n")
    found = b"".join(reversed(blocks))
    return "\n".join(found.decode("utf-8", errors="replace").splitlines()[-lines:])


def tails(folder: Path, lines: int, name: str | None = None) -> str:
    """The ends of all log files, each under its name, or of the one that is asked for.

    Raises:
        InputError: there is no file of that name.
    """
    names = sorted(path.name for path in folder.glob("*.log")) if folder.is_dir() else []
    if name is not None:
        if name not in names:  # also keeps a name from leaving the folder
            raise InputError(f"file: there is no log {name!r}; there are: {', '.join(names) or 'none yet'}")
        return tail(folder / name, lines) + "\n"
    return "\n".join(f"==> {each} <==\n{tail(folder / each, lines)}\n" for each in names)


def records(folder: Path, *, after: str | None = None, limit: int = 500, level: Level = "debug") -> LogPage:
    """A page of records, oldest first.

    Args:
        folder: the job's logs.
        after: `next` of the page before.
        limit: at most so many.
        level: only records of this level and above.

    Raises:
        InputError: ``after`` is no cursor.
    """
    offsets = _offsets(after)
    wanted = LEVELS[LEVELS.index(level) :]
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    lines = heapq.merge(*(_lines(path, offsets.get(path.name, 0)) for path in files), key=lambda line: line[:2])
    found: list[LogRecord] = []
    for seen, (_, name, end, record) in enumerate(lines):
        if len(found) == limit or seen == MOST_LINES:
            return LogPage(records=tuple(found), next=_cursor(offsets), more=True)
        offsets[name] = end
        if record.level in wanted:
            found.append(_masked(record))
    return LogPage(records=tuple(found), next=_cursor(offsets), more=False)


def _lines(path: Path, offset: int) -> Iterator[tuple[datetime, str, int, LogRecord]]:
    """A file's whole lines from an offset on: time, name of the file, offset behind it, and content."""
    with path.open("rb") as file:
        file.seek(max(0, offset - 1))
        if offset and file.read(1) != b"\n":
            raise InputError(NO_CURSOR)
        before = datetime.fromtimestamp(path.stat().st_ctime, UTC)
        for line in file:
            if not line.endswith(b"\n"):  # it is just being written, or its worker was killed over it
                return
            offset += len(line)
            record = _record(line, path, before)
            before = record.time
            yield before, path.name, offset, record


def _record(line: bytes, path: Path, before: datetime) -> LogRecord:
    """A line's record. One that cannot be read, as a full disk leaves it, is shown as it is, at the time of the line before."""
    try:
        return LogRecord.model_validate_json(line)
    except ValidationError:
        return LogRecord(
            time=before,
            level="error",
            logger=path.name,
            message=f"a line that cannot be read: {line.decode('utf-8', errors='replace').rstrip()}",
            job_id=path.parent.parent.name,
            worker=path.stem,
        )


def _masked(record: LogRecord) -> LogRecord:
    said = record.model_dump(include={"message", "exception", "request_id"}, exclude_none=True)
    return record.model_copy(update=mask_json(said))


def _cursor(offsets: Mapping[str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(offsets, separators=(",", ":")).encode()).decode().rstrip("=")


_OFFSETS: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, Annotated[int, Field(ge=0, lt=1 << 62)]])


def _offsets(cursor: str | None) -> dict[str, int]:
    if cursor is None:
        return {}
    try:
        return _OFFSETS.validate_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), strict=True)
    except (ValueError, ValidationError):
        raise InputError(NO_CURSOR) from None
