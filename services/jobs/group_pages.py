"""Pages of a ledger's groups: the cursor is the round and the index of the last one already seen."""

from __future__ import annotations

import re

from learner.errors import InputError
from workers.replay.rows import GroupRow


def read_cursor(after: str | None) -> tuple[int, int] | None:
    """Round and index from a cursor.

    Raises:
        InputError: it is none.
    """
    if after is None:
        return None
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", after)
    if match is None:
        raise InputError(f"after: {after!r} is not a cursor; take `next` of the page before")
    return int(match[1]), int(match[2])


def cut(rows: list[GroupRow], limit: int) -> tuple[list[GroupRow], str | None]:
    """A page of ``limit`` rows from one row more, and the cursor of the following page, where there is one."""
    page = rows[:limit]
    return page, f"{page[-1].round}.{page[-1].index}" if len(rows) > limit else None
