"""The replay ledger: every group that was ever admitted, and where it stands (rules 3, 7 and 11).

One SQLite file in WAL mode with ``synchronous=FULL``: a transaction is on disk before its method returns. Each of ``admit``, ``put``
(``put_many``: one for all), ``fail``, ``lease`` (when a row changed), ``commit`` and ``release`` is one transaction and costs one fsync; reading costs none.
Rows are never deleted, and what can be counted is counted from them.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from learner.errors import InputError
from learner.records import AnswerSource, GroupState, ScoredGroup, SkipReason, Stage, Ticket
from workers.replay.rows import LedgerError, PutResult, pack, policy_version, unpack_group
from workers.replay.view import LedgerView


class ReplayLedger(LedgerView):
    """The account of a job's groups.

    Args:
        path: the SQLite file; its folder is made.
        max_groups: groups that may be scored and not yet consumed (ready or leased).
        max_bytes: their size, in stored bytes.
        read_only: look, change nothing; any number of readers may stand beside the one writer.
        keep_samples: keep the content of groups that are done with, for inspection.
        patience_seconds: how long to wait for a writer that is about to end, such as a queue that was just killed.
        clock: seconds since the epoch.

    Raises:
        InputError: the file is missing (read only), is another program's, or is held by another writer.
    """

    def __init__(
        self,
        path: Path,
        max_groups: int,
        max_bytes: int,
        read_only: bool = False,
        *,
        keep_samples: bool = True,
        patience_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._owner = None if read_only else _own(path, patience_seconds)
        try:
            super().__init__(path, read_only=read_only)
        except BaseException:
            self._disown()
            raise
        self.max_groups = max_groups
        self.max_bytes = max_bytes
        self._keep_samples = keep_samples
        self._clock = clock
        self._held = self.held()

    def close(self) -> None:
        """Close the file and let another writer have it."""
        with self._lock:
            super().close()
            self._disown()

    def __enter__(self) -> ReplayLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def admit(self, tickets: Sequence[Ticket]) -> int:
        """Write granted tickets down. Returns how many rows are new.

        A ticket that is known already changes nothing, unless its row still waits and its attempt is higher: then it replaces the earlier one.

        Raises:
            LedgerError: a known id comes with another round or index, or another id holds them.
        """
        now, new, admitted = self._clock(), 0, Counter[tuple[int, AnswerSource]]()
        with self._write() as db:
            for ticket in tickets:
                row = db.execute("SELECT * FROM groups WHERE group_id = ?", (ticket.group_id,)).fetchone()
                if row is None:
                    try:
                        cursor = db.execute(
                            "INSERT INTO groups (group_id, source, round, idx, attempt, state, version, admitted_at, updated_at) "
                            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                            (
                                ticket.group_id,
                                ticket.source,
                                ticket.round,
                                ticket.index,
                                ticket.attempt,
                                GroupState.GRANTED,
                                ticket.version,
                                now,
                                now,
                            ),
                        )
                    except sqlite3.IntegrityError as error:
                        raise LedgerError(
                            f"{ticket.group_id}: round {ticket.round}, index {ticket.index} belongs to another group"
                        ) from error
                    db.execute("INSERT INTO tickets VALUES (?, ?)", (cursor.lastrowid, pack(ticket)))
                    new += 1
                    admitted[ticket.round, ticket.source] += 1
                    continue
                _same_place(row, ticket.round, ticket.index)
                if row["state"] == GroupState.GRANTED and ticket.attempt > row["attempt"]:
                    db.execute(
                        "UPDATE groups SET attempt = ?, version = ?, updated_at = ? WHERE id = ?",
                        (ticket.attempt, ticket.version, now, row["id"]),
                    )
                    db.execute("UPDATE tickets SET body = ? WHERE id = ?", (pack(ticket), row["id"]))
            db.executemany(
                "INSERT INTO admissions (round, source, groups, admitted_at) VALUES (?, ?, ?, ?)",
                [(round, source, groups, now) for (round, source), groups in admitted.items()],
            )
        return new

    def put(self, group: ScoredGroup, skip: SkipReason | None, sampled_at: float | None = None) -> PutResult:
        """Store one scored group; see :meth:`put_many`."""
        return self.put_many([(group, skip)], {group.group_id: sampled_at})[0]

    def put_many(
        self,
        items: Sequence[tuple[ScoredGroup, SkipReason | None]],
        sampled_at: Mapping[str, float | None] | None = None,
    ) -> list[PutResult]:
        """Store scored groups in one transaction; each is stored, skipped, a duplicate, or refused because the queue is full.

        Groups with a reason to skip take no room. Once one group was refused, those after it are still tried: a small one may fit.

        Args:
            items: groups, each with the reason to skip it or None.
            sampled_at: when their answers were complete, in seconds since the epoch, by group id where it is known.

        Raises:
            InputError: a group alone is larger than ``max_bytes``. Nothing of the call is stored.
            LedgerError: a group was never admitted, or comes with another round or index. Nothing of the call is stored.
        """
        now, results = self._clock(), list[PutResult]()
        with self._write() as db:
            groups, size = self._held
            for group, skip in items:
                row = db.execute("SELECT * FROM groups WHERE group_id = ?", (group.group_id,)).fetchone()
                if row is None:
                    raise LedgerError(f"{group.group_id} was put but never admitted")
                _same_place(row, group.round, group.index)
                if row["state"] != GroupState.GRANTED:
                    db.execute("UPDATE groups SET duplicates = duplicates + 1 WHERE id = ?", (row["id"],))
                    results.append(PutResult.DUPLICATE)
                    continue
                if skip is None and groups + 1 > self.max_groups:
                    results.append(PutResult.FULL)
                    continue
                body = pack(group)
                if skip is None:
                    if len(body) > self.max_bytes:
                        raise InputError(
                            f"{group.group_id} has {len(body)} bytes, more than resources.queue.max_bytes {self.max_bytes} "
                            "could ever hold; raise it"
                        )
                    if size + len(body) > self.max_bytes:
                        results.append(PutResult.FULL)
                        continue
                    groups, size = groups + 1, size + len(body)
                db.execute(
                    "UPDATE groups SET state = ?, reason = ?, version = ?, policy_version = ?, bytes = ?, sampled_at = ?, stored_at = ?, "
                    "updated_at = ? WHERE id = ?",
                    (
                        GroupState.READY if skip is None else GroupState.SKIPPED,
                        skip,
                        group.version,
                        policy_version(group),
                        len(body),
                        (sampled_at or {}).get(group.group_id),
                        now,
                        now,
                        row["id"],
                    ),
                )
                db.execute("DELETE FROM tickets WHERE id = ?", (row["id"],))
                if skip is None or self._keep_samples:
                    db.execute("INSERT INTO payloads VALUES (?, ?)", (row["id"], body))
                results.append(PutResult.STORED if skip is None else PutResult.SKIPPED)
        return results

    def fail(self, group_id: str, stage: Stage, reason: str) -> bool:
        """Give a granted group up. Returns whether its row is now failed: a group that arrived meanwhile stays as it is.

        Raises:
            LedgerError: the group was never admitted.
        """
        with self._write() as db:
            row = db.execute("SELECT id, state FROM groups WHERE group_id = ?", (group_id,)).fetchone()
            if row is None:
                raise LedgerError(f"{group_id} failed but was never admitted")
            if row["state"] == GroupState.GRANTED:
                db.execute(
                    "UPDATE groups SET state = ?, stage = ?, reason = ?, updated_at = ? WHERE id = ?",
                    (GroupState.FAILED, stage, reason, self._clock(), row["id"]),
                )
            return row["state"] in (GroupState.GRANTED, GroupState.FAILED)

    def lease(
        self,
        *,
        count: int,
        newest_version: int,
        max_staleness: int,
        pass_number: int = 0,
        round: int | None = None,
        minimum: int | None = None,
    ) -> list[ScoredGroup]:
        """Hand out one optimizer batch, or nothing.

        First, ready groups expire when their policy's version is older than ``newest_version - max_staleness``. Then exactly ``count`` groups
        are taken, or at least ``minimum`` where that is given (the last batch of a round may be short).

        Args:
            count: groups of a whole batch.
            newest_version: the newest version that exists.
            max_staleness: how many versions the policy that wrote a group may be behind it.
            pass_number: 0 takes ready groups in order of (round, index). p > 0 hands out again, in the same order, what pass p - 1 handed
                out since the last commit.
            round: take groups of this round only.
            minimum: take a short batch of at least so many.
        """
        if not 1 <= (count if minimum is None else minimum) <= count or pass_number < 0:
            raise LedgerError(f"cannot lease count={count}, minimum={minimum}, pass_number={pass_number}")
        needed = count if minimum is None else minimum
        if pass_number == 0:
            where, order = "state = ?", "round, idx"
            values: list[str | int] = [GroupState.READY]
        else:
            where, order = "lease_order IS NOT NULL AND state = ? AND last_pass = ?", "lease_order"
            values = [GroupState.LEASED, pass_number - 1]
        if round is not None:
            where, values = f"{where} AND round = ?", [*values, round]
        with self._write() as db:
            self._expire(db, newest_version - max_staleness)
            chosen = db.execute(f"SELECT id FROM groups WHERE {where} ORDER BY {order} LIMIT ?", (*values, count))
            ids = [row["id"] for row in chosen]
            if len(ids) < needed:
                return []
            place = db.execute("SELECT count(*) FROM groups WHERE state = ?", (GroupState.LEASED,)).fetchone()[0]
            now = self._clock()
            db.executemany(
                "UPDATE groups SET state = ?, last_pass = ?, lease_order = coalesce(lease_order, ?), leased_at = coalesce(leased_at, ?), "
                "updated_at = ? WHERE id = ?",
                [(GroupState.LEASED, pass_number, place + i, now, now, id) for i, id in enumerate(ids)],
            )
            bodies = [db.execute("SELECT body FROM payloads WHERE id = ?", (id,)).fetchone()["body"] for id in ids]
        return [unpack_group(body) for body in bodies]

    def commit(self, version: int, learner_step: int, *, groups: int | None = None) -> int:
        """Make ``version`` exist: in one transaction, what is leased becomes consumed, and belongs to it (rule 11).

        Committing a version again changes nothing. Returns how many groups produced it.

        Args:
            version: the version that was published; higher than every committed one.
            learner_step: optimizer steps made so far.
            groups: how many distinct groups the learner applied; where given, another number of leased groups is refused.

        Raises:
            LedgerError: the version is not newer, or was committed at another step, or ``groups`` differs.
        """
        with self._write() as db:
            known = db.execute("SELECT * FROM commits WHERE version = ?", (version,)).fetchone()
            if known is not None:
                if known["learner_step"] != learner_step:
                    raise LedgerError(
                        f"version {version} was committed at step {known['learner_step']}, not {learner_step}"
                    )
                return int(known["groups"])
            newest = self.committed_version()
            if newest is not None and version < newest:
                raise LedgerError(f"version {version} cannot follow version {newest}: version numbers never go back")
            leased = db.execute("SELECT count(*) FROM groups WHERE state = ?", (GroupState.LEASED,)).fetchone()[0]
            if groups is not None and groups != leased:
                raise LedgerError(f"version {version} was learned from {groups} groups, but {leased} are leased")
            if not self._keep_samples:
                db.execute(
                    "DELETE FROM payloads WHERE id IN (SELECT id FROM groups WHERE state = ?)", (GroupState.LEASED,)
                )
            now = self._clock()
            db.execute(
                "UPDATE groups SET state = ?, produced_version = ?, lease_order = NULL, updated_at = ? WHERE state = ?",
                (GroupState.CONSUMED, version, now, GroupState.LEASED),
            )
            db.execute("INSERT INTO commits VALUES (?, ?, ?, ?)", (version, learner_step, leased, now))
        return int(leased)

    def release(self) -> int:
        """Take back what is leased and not committed, as after a restart. Returns how many groups are ready again."""
        with self._write() as db:
            cursor = db.execute(
                "UPDATE groups SET state = ?, last_pass = NULL, lease_order = NULL, leased_at = NULL, updated_at = ? WHERE state = ?",
                (GroupState.READY, self._clock(), GroupState.LEASED),
            )
        return cursor.rowcount

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        if self.read_only:
            raise LedgerError(f"{self.path} was opened to be read only")
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            self._held = self.held()

    def _expire(self, db: sqlite3.Connection, oldest_allowed: int) -> None:
        stale = "state = ? AND policy_version < ?"
        if not self._keep_samples:
            db.execute(
                f"DELETE FROM payloads WHERE id IN (SELECT id FROM groups WHERE {stale})",
                (GroupState.READY, oldest_allowed),
            )
        db.execute(
            f"UPDATE groups SET state = ?, updated_at = ? WHERE {stale}",
            (GroupState.EXPIRED, self._clock(), GroupState.READY, oldest_allowed),
        )

    def _disown(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None


def _own(path: Path, patience_seconds: float) -> IO[bytes]:
    """Be the only writer. The lock belongs to the process: it is free the moment that the process is gone, however it went."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(path.name + ".lock").open("ab")
    limit = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > limit:
                file.close()
                raise InputError(
                    f"{path} is being written by another process; stop that job's replay queue first"
                ) from None
            time.sleep(0.02)


def _same_place(row: sqlite3.Row, round: int, index: int) -> None:
    if (row["round"], row["idx"]) != (round, index):
        raise LedgerError(
            f"{row['group_id']} was admitted as round {row['round']}, index {row['idx']}, not round {round}, index {index}"
        )
