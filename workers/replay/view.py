"""Looking at a replay ledger: what anybody may ask of its file, beside the one process that writes it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learner.errors import InputError
from learner.records import AnswerSource, GroupState, SkipReason, Stage, Ticket
from workers.replay.rows import (
    READABLE,
    SCHEMA,
    SCHEMA_VERSION,
    UPGRADE,
    GroupRow,
    LedgerCounts,
    to_row,
    unpack_ticket,
)

BUSY_SECONDS = 30.0
"""Longest wait for SQLite's own lock; only a checkpoint or a reader's first look can hold it, both for milliseconds."""


class LedgerView:
    """The questions that a ledger answers. Costs no fsync and changes nothing.

    Raises:
        InputError: there is no such file, or it is not a ledger of this release.
    """

    def __init__(self, path: Path, *, read_only: bool = True) -> None:
        self.path = path
        self.read_only = read_only
        self._lock = threading.RLock()
        self._db = _open(path, read_only)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def committed_version(self) -> int | None:
        """The newest committed version; None before the first."""
        newest: int | None = self._read("SELECT max(version) FROM commits")[0][0]
        return newest

    def committed_step(self) -> int | None:
        """Optimizer steps behind the newest committed version; None before the first."""
        rows = self._read("SELECT learner_step FROM commits ORDER BY version DESC LIMIT 1")
        return rows[0][0] if rows else None

    def counts(self) -> LedgerCounts:
        """The whole job's account."""
        return self._counts("", ())

    def round_counts(self, round: int, last: int | None = None) -> LedgerCounts:
        """The account of one round, or of all rounds from it to ``last``."""
        return self._counts("WHERE round BETWEEN ? AND ?", (round, round if last is None else last))

    def source_counts(self, source: AnswerSource) -> LedgerCounts:
        """The account of the groups whose answers come from one source."""
        return self._counts("WHERE source = ?", (source,))

    def produced(self, version: int, source: AnswerSource) -> int:
        """How many groups of one source a version was learned from."""
        query = "SELECT count(*) FROM groups WHERE produced_version = ? AND source = ?"
        return int(self._read(query, (version, source))[0][0])

    def known(self, group_ids: Sequence[str]) -> list[str]:
        """Those of the ids that were admitted."""
        query = "SELECT group_id FROM groups WHERE group_id IN (SELECT value FROM json_each(?))"
        return [row["group_id"] for row in self._read(query, (json.dumps(list(group_ids)),))]

    def granted(self) -> list[Ticket]:
        """Tickets whose groups have not arrived, in order; after a restart they are granted again."""
        rows = self._read(
            "SELECT body FROM groups JOIN tickets USING (id) WHERE state = ? ORDER BY round, idx", (GroupState.GRANTED,)
        )
        return [unpack_ticket(row["body"]) for row in rows]

    def held(self) -> tuple[int, int]:
        """What stands against the bound: groups that are ready or leased, and their stored bytes."""
        row = self._read(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM groups WHERE state IN (?, ?)",
            (GroupState.READY, GroupState.LEASED),
        )[0]
        return row[0], row[1]

    def groups(
        self,
        *,
        state: GroupState | None = None,
        version: int | None = None,
        round: int | None = None,
        produced_version: int | None = None,
        limit: int,
        after: tuple[int, int] | None = None,
        content: bool = True,
    ) -> list[GroupRow]:
        """Rows in order of (round, index), for inspection and export.

        Args:
            state: only rows in this state.
            version: only groups that this version wrote.
            round: only groups of this round.
            produced_version: only groups that were consumed into this version.
            limit: most rows to return.
            after: (round, index) of the last row of the page before.
            content: read tickets and groups too.
        """
        wanted = {"state": state, "version": version, "round": round, "produced_version": produced_version}
        terms = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        values: list[Any] = [value for value in wanted.values() if value is not None]
        if after is not None:
            terms.append("(round, idx) > (?, ?)")
            values += after
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        bodies = (
            ", tickets.body AS ticket, payloads.body AS payload" if content else ", NULL AS ticket, NULL AS payload"
        )
        rows = self._read(
            f"SELECT groups.*{bodies} FROM groups LEFT JOIN tickets USING (id) LEFT JOIN payloads USING (id) "
            f"{where} ORDER BY round, idx LIMIT ?",
            (*values, limit),
        )
        return [to_row(row) for row in rows]

    def committed_at(self) -> dict[int, float]:
        """When each version was committed, in seconds since the epoch."""
        return {row["version"]: row["committed_at"] for row in self._read("SELECT version, committed_at FROM commits")}

    def check(self) -> list[str]:
        """What is wrong with the file and the account; empty when all is well. Reads everything."""
        faults = [row[0] for row in self._read("PRAGMA integrity_check") if row[0] != "ok"]
        if not self.counts().balanced:
            faults.append(f"admitted groups are missing or were added: {self.counts()!r}")
        faults += [
            f"version {row[0]} was committed with {row[1]} groups but has {row[2]}"
            for row in self._read(
                "SELECT version, groups, (SELECT count(*) FROM groups WHERE produced_version = commits.version) AS found "
                "FROM commits WHERE groups != found"
            )
        ]
        return faults

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _counts(self, where: str, values: Sequence[Any]) -> LedgerCounts:
        with self._lock:
            self._db.execute("BEGIN")  # one view of both tables, also beside a writer
            try:
                admissions = self._db.execute(
                    f"SELECT source, sum(groups) AS groups FROM admissions {where} GROUP BY source", values
                ).fetchall()
                rows = self._db.execute(
                    "SELECT state, CASE state WHEN 'skipped' THEN reason WHEN 'failed' THEN stage ELSE '' END AS why, "
                    f"count(*) AS groups, sum(duplicates) AS duplicates FROM groups {where} GROUP BY state, why",
                    values,
                ).fetchall()
            finally:
                self._db.execute("COMMIT")

        def standing(state: GroupState) -> dict[str, int]:
            return {row["why"]: row["groups"] for row in rows if row["state"] == state}

        return LedgerCounts(
            admitted=sum(row["groups"] for row in admissions),
            granted=sum(standing(GroupState.GRANTED).values()),
            ready=sum(standing(GroupState.READY).values()),
            leased=sum(standing(GroupState.LEASED).values()),
            consumed=sum(standing(GroupState.CONSUMED).values()),
            skipped={SkipReason(why): groups for why, groups in standing(GroupState.SKIPPED).items()},
            expired=sum(standing(GroupState.EXPIRED).values()),
            failed={Stage(why): groups for why, groups in standing(GroupState.FAILED).items()},
            duplicates=sum(row["duplicates"] for row in rows),
            sources={AnswerSource(row["source"]): row["groups"] for row in admissions},
        )


def _open(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun explicitly."""
    if read_only and not path.is_file():
        raise InputError(f"there is no replay ledger at {path}; the job has not started to sample")
    mode = "ro" if read_only else "rwc"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.row_factory = sqlite3.Row
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0 and not read_only and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.executescript(f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
            found = SCHEMA_VERSION
        if found in READABLE and found != SCHEMA_VERSION and not read_only:
            db.executescript(f"BEGIN IMMEDIATE;{UPGRADE}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        if found not in READABLE:
            raise InputError(f"{path} is not a replay ledger of this release (format {found}, not {SCHEMA_VERSION})")
    except sqlite3.DatabaseError as error:
        db.close()
        raise InputError(f"{path} cannot be read as a replay ledger: {error}") from error
    except BaseException:
        db.close()
        raise
    return db
