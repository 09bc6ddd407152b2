"""The replay ledger's account: order, bounds, passes, and what is on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replay_samples import group, ticket

from learner.errors import InputError
from learner.records import AnswerSource, GroupState, SkipReason, Stage, Ticket
from workers.replay.ledger import ReplayLedger
from workers.replay.rows import PASSAGES, LedgerError, PutResult


def open_ledger(folder: Path, max_groups: int = 100, max_bytes: int = 1 << 24, **options: Any) -> ReplayLedger:
    return ReplayLedger(folder / "replay.sqlite", max_groups, max_bytes, **options)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ReplayLedger]:
    with open_ledger(tmp_path) as opened:
        yield opened


def fill(ledger: ReplayLedger, count: int, *, round: int = 0, version: int = 0) -> None:
    tickets = [ticket(i, round=round, version=version) for i in range(count)]
    ledger.admit(tickets)
    for one in reversed(tickets):  # arrival order must not matter
        assert ledger.put(group(one), None) is PutResult.STORED


def indices(ledger: ReplayLedger, count: int, **options: int) -> list[int]:
    wanted = {"newest_version": 0, "max_staleness": 0, **options}
    return [leased.index for leased in ledger.lease(count=count, **wanted)]


def test_groups_come_back_whole_and_in_order(ledger: ReplayLedger) -> None:
    fill(ledger, 5)
    leased = ledger.lease(count=3, newest_version=0, max_staleness=0)
    assert leased == [group(ticket(i)) for i in range(3)]
    assert indices(ledger, 3) == []  # not a whole batch
    assert indices(ledger, 3, minimum=1) == [3, 4]
    assert indices(ledger, 3, minimum=1) == []


def test_rounds_are_kept_apart_when_asked(ledger: ReplayLedger) -> None:
    fill(ledger, 2, round=0)
    fill(ledger, 4, round=1)
    assert indices(ledger, 3, round=0) == []
    assert indices(ledger, 3, round=1) == [0, 1, 2]
    assert indices(ledger, 3) == [0, 1, 3]
    assert ledger.round_counts(1).leased == 4 and ledger.round_counts(1).admitted == 4


def test_later_passes_repeat_the_first_ones_order(ledger: ReplayLedger) -> None:
    fill(ledger, 5)
    first = [indices(ledger, 2), indices(ledger, 2), indices(ledger, 2, minimum=1)]
    for number in (1, 2):
        again = [indices(ledger, 2, pass_number=number), indices(ledger, 2, pass_number=number)]
        assert [*again, indices(ledger, 2, minimum=1, pass_number=number)] == first
        assert indices(ledger, 2, minimum=1, pass_number=number) == []
    assert indices(ledger, 1, pass_number=5) == []  # the pass before was not made
    assert ledger.commit(1, 9) == 5
    assert indices(ledger, 1, pass_number=3) == []  # consumed rows belong to their version
    assert {row.passes for row in ledger.groups(limit=10)} == {3}


def test_a_restart_takes_leases_back_and_begins_the_passes_again(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        fill(ledger, 4)
        indices(ledger, 2)
        ledger.commit(1, 1)
        indices(ledger, 2)
        indices(ledger, 2, pass_number=1)
    with open_ledger(tmp_path) as ledger:
        assert ledger.counts().leased == 2 and ledger.committed_version() == 1 and ledger.committed_step() == 1
        assert ledger.release() == 2
        assert indices(ledger, 2, pass_number=1) == []
        assert indices(ledger, 2) == [2, 3]
        assert ledger.check() == []


def test_old_groups_expire_and_answers_from_outside_do_not(ledger: ReplayLedger) -> None:
    tickets = [ticket(i, version=i) for i in range(4)]
    ledger.admit(tickets)
    ledger.put(group(tickets[0], outside=True), None)
    for one in tickets[1:]:
        ledger.put(group(one), None)
    assert indices(ledger, 4, newest_version=3, max_staleness=1) == []
    assert ledger.counts().expired == 1
    assert indices(ledger, 3, newest_version=3, max_staleness=1) == [0, 2, 3]
    assert ledger.counts().balanced


def test_a_group_does_not_expire_because_of_its_opponents_old_answers(ledger: ReplayLedger) -> None:
    ledger.admit([ticket(0, version=3)])
    own = group(ticket(0, version=3))
    old = own.answers[1].model_copy(update={"version": 0})
    ledger.put(own.model_copy(update={"answers": (own.answers[0], old)}), None)
    assert indices(ledger, 1, newest_version=3) == [0]


def test_committing_makes_a_version_once_and_never_goes_back(ledger: ReplayLedger) -> None:
    assert ledger.committed_version() is None
    assert ledger.commit(0, 0) == 0
    fill(ledger, 4)
    indices(ledger, 2)
    with pytest.raises(LedgerError, match="learned from 3 groups, but 2 are leased"):
        ledger.commit(1, 1, groups=3)
    assert ledger.commit(1, 1, groups=2) == 2
    indices(ledger, 2)
    assert ledger.commit(1, 1) == 2  # repeated: touches nothing that was leased since
    assert ledger.counts().leased == 2
    with pytest.raises(LedgerError, match="committed at step 1, not 2"):
        ledger.commit(1, 2)
    assert ledger.commit(5, 2) == 2
    with pytest.raises(LedgerError, match="never go back"):
        ledger.commit(4, 2)
    assert [row.index for row in ledger.groups(produced_version=5, limit=10)] == [2, 3]


def test_late_and_repeated_groups_are_counted_duplicates(ledger: ReplayLedger) -> None:
    tickets = [ticket(i) for i in range(3)]
    assert ledger.admit(tickets) == 3
    assert ledger.admit(tickets) == 0
    assert ledger.put(group(tickets[0]), None) is PutResult.STORED
    assert ledger.put(group(tickets[0]), None) is PutResult.DUPLICATE
    assert ledger.fail(tickets[1].group_id, Stage.SAMPLER, "died three times")
    assert ledger.put(group(tickets[1]), None) is PutResult.DUPLICATE
    assert ledger.fail(tickets[1].group_id, Stage.SCORER, "again")  # repeated: the first reason stays
    assert not ledger.fail(tickets[0].group_id, Stage.SAMPLER, "it had arrived")
    counts = ledger.counts()
    assert counts.duplicates == 2 and counts.failed == {Stage.SAMPLER: 1} and counts.balanced


def test_a_new_attempt_replaces_the_ticket_of_a_group_that_is_awaited(ledger: ReplayLedger) -> None:
    ledger.admit([ticket(0), ticket(1)])
    retried = ticket(0, version=3, attempt=1)
    assert ledger.admit([retried]) == 0
    assert ledger.admit([ticket(0)]) == 0  # an older attempt changes nothing
    assert ledger.granted() == [retried, ticket(1)]
    ledger.put(group(ticket(0)), None)  # the first attempt arrives after all
    assert ledger.admit([ticket(0, attempt=2)]) == 0
    assert ledger.granted() == [ticket(1)]
    assert ledger.counts().ready == 1


def test_skipped_groups_take_no_room_and_are_counted_by_reason(tmp_path: Path) -> None:
    with open_ledger(tmp_path, max_groups=1) as ledger:
        tickets = [ticket(i) for i in range(4)]
        ledger.admit(tickets)
        results = ledger.put_many(
            [
                (group(tickets[0]), None),
                (group(tickets[1]), SkipReason.TIE),
                (group(tickets[2]), None),
                (group(tickets[3]), SkipReason.IDENTICAL),
            ]
        )
        assert results == [PutResult.STORED, PutResult.SKIPPED, PutResult.FULL, PutResult.SKIPPED]
        assert ledger.counts().skipped == {SkipReason.TIE: 1, SkipReason.IDENTICAL: 1}
        indices(ledger, 1)
        assert ledger.put(group(tickets[2]), None) is PutResult.FULL  # leased groups count until they are committed
        ledger.commit(1, 1)
        assert ledger.put(group(tickets[2]), None) is PutResult.STORED


def test_bytes_are_bounded_too_and_what_never_fits_is_refused(tmp_path: Path) -> None:
    with open_ledger(tmp_path, max_bytes=1500) as ledger:
        ledger.admit([ticket(i) for i in range(10)])
        results = [ledger.put(group(ticket(i)), None) for i in range(9)]
        assert PutResult.FULL in results and results[0] is PutResult.STORED
        assert ledger.held()[1] <= 1500
        with pytest.raises(InputError, match=r"more than resources\.queue\.max_bytes 1500"):
            ledger.put(group(ticket(9), tokens=1000), None)
        assert ledger.counts().granted == results.count(PutResult.FULL) + 1


def test_what_was_never_admitted_is_an_error_and_stores_nothing(ledger: ReplayLedger) -> None:
    ledger.admit([ticket(0), ticket(1)])
    with pytest.raises(LedgerError, match="job/r0/7 was put but never admitted"):
        ledger.put_many([(group(ticket(0)), None), (group(ticket(7)), None)])
    assert ledger.counts().granted == 2
    with pytest.raises(LedgerError, match="never admitted"):
        ledger.fail("job/r0/7", Stage.QUEUE, "?")
    with pytest.raises(LedgerError, match="admitted as round 0, index 0, not round 0, index 3"):
        ledger.put(group(ticket(0).model_copy(update={"index": 3})), None)
    with pytest.raises(LedgerError, match="belongs to another group"):
        ledger.admit([ticket(5), ticket(0).model_copy(update={"group_id": "else"})])
    assert ledger.counts().admitted == 2 and ledger.check() == []


def test_a_vanished_row_unbalances_the_account(ledger: ReplayLedger) -> None:
    fill(ledger, 3)
    assert ledger.counts().balanced
    ledger._db.execute("PRAGMA foreign_keys = OFF")
    ledger._db.execute("DELETE FROM groups WHERE idx = 1")
    assert not ledger.counts().balanced
    assert "missing" in ledger.check()[0]


@pytest.mark.parametrize("keep", [True, False])
def test_content_is_kept_or_dropped_when_a_group_is_done_with(tmp_path: Path, keep: bool) -> None:
    with open_ledger(tmp_path, keep_samples=keep) as ledger:
        tickets = [ticket(i, version=min(i, 1)) for i in range(4)]
        ledger.admit(tickets)
        ledger.put(group(tickets[0]), None)  # expires
        ledger.put(group(tickets[1]), SkipReason.TIE)
        ledger.put(group(tickets[2]), None)
        assert indices(ledger, 1, newest_version=1) == [2]
        ledger.commit(2, 1)
        rows = ledger.groups(limit=10)
        assert [row.state for row in rows] == ["expired", "skipped", "consumed", "granted"]
        assert [row.group is not None for row in rows] == [keep, keep, keep, False]
        assert [row.ticket is not None for row in rows] == [False, False, False, True]
        assert ledger.counts().balanced and ledger.check() == []


def test_rows_are_paged_and_filtered(ledger: ReplayLedger) -> None:
    fill(ledger, 3, round=0)
    fill(ledger, 3, round=1, version=1)
    page = ledger.groups(limit=4)
    assert [(row.round, row.index) for row in page] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    rest = ledger.groups(limit=4, after=(page[-1].round, page[-1].index), content=False)
    assert [(row.round, row.index, row.group) for row in rest] == [(1, 1, None), (1, 2, None)]
    assert len(ledger.groups(version=1, state=GroupState.READY, limit=10)) == 3
    assert ledger.groups(state=GroupState.LEASED, limit=10) == []


def test_there_is_one_writer_and_any_number_of_readers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no replay ledger"):
        open_ledger(tmp_path, read_only=True)
    with open_ledger(tmp_path) as ledger:
        fill(ledger, 2)
        with pytest.raises(InputError, match="written by another process"):
            open_ledger(tmp_path, patience_seconds=0.1)
        with open_ledger(tmp_path, read_only=True) as reader:
            indices(ledger, 1)
            assert reader.counts() == ledger.counts() and reader.counts().leased == 1
            with pytest.raises(LedgerError, match="read only"):
                reader.release()
    with open_ledger(tmp_path, read_only=True) as reader:
        assert reader.counts().admitted == 2


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "replay.sqlite").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(InputError, match="cannot be read as a replay ledger"):
        open_ledger(tmp_path)
    (tmp_path / "replay.sqlite").unlink()
    with open_ledger(tmp_path) as ledger:
        ledger._db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="format 99"):
        open_ledger(tmp_path)


@pytest.mark.parametrize(
    "wanted", [{"count": 0}, {"count": 2, "minimum": 3}, {"count": 2, "minimum": 0}, {"count": 1, "pass_number": -1}]
)
def test_senseless_leases_are_errors(ledger: ReplayLedger, wanted: dict[str, int]) -> None:
    with pytest.raises(LedgerError, match="cannot lease"):
        ledger.lease(newest_version=0, max_staleness=0, **wanted)


def test_each_source_has_an_account_of_its_own(ledger: ReplayLedger) -> None:
    def of(source: AnswerSource, index: int) -> Ticket:
        return ticket(index).model_copy(update={"source": source})

    tickets = [of(AnswerSource.FEEDBACK if index % 3 == 0 else AnswerSource.POLICY, index) for index in range(6)]
    ledger.admit(tickets)
    ledger.admit(tickets)  # again changes nothing
    for one in tickets[:5]:
        ledger.put(group(one), SkipReason.TIE if one.index == 3 else None)
    assert indices(ledger, 3) == [0, 1, 2]
    ledger.commit(1, 1)
    whole, people = ledger.counts(), ledger.source_counts(AnswerSource.FEEDBACK)
    assert whole.balanced and whole.sources == {AnswerSource.POLICY: 4, AnswerSource.FEEDBACK: 2}
    assert people.balanced and people.skipped == {SkipReason.TIE: 1}
    assert (people.admitted, people.consumed, people.remaining) == (2, 1, 0)
    assert [ledger.produced(1, source) for source in AnswerSource] == [2, 1, 0]
    assert ledger.source_counts(AnswerSource.FILE).admitted == 0
    assert [row.source for row in ledger.groups(limit=9)] == [one.source for one in tickets]


def test_which_groups_are_known_is_told(ledger: ReplayLedger) -> None:
    fill(ledger, 2)
    assert sorted(ledger.known(["job/r0/1", "job/r0/7", "job/r0/0"])) == ["job/r0/0", "job/r0/1"]
    assert ledger.known([]) == []


def test_a_group_carries_the_times_at_which_it_passed_the_stages(tmp_path: Path) -> None:
    now = [100.0]
    with open_ledger(tmp_path, clock=lambda: now[0]) as ledger:
        ledger.admit([ticket(0), ticket(1)])
        now[0] = 110.0
        ledger.put(group(ticket(0)), None, 105.0)
        ledger.put(group(ticket(1)), None)
        now[0] = 120.0
        ledger.lease(count=2, newest_version=0, max_staleness=0)
        now[0] = 125.0
        ledger.lease(count=2, newest_version=0, max_staleness=0, pass_number=1)
        first, second = ledger.groups(limit=2)
        assert (first.sampled_at, first.stored_at, first.leased_at) == (105.0, 110.0, 120.0), "the first pass counts"
        assert (second.sampled_at, second.stored_at) == (None, 110.0)
        ledger.release()
        assert ledger.groups(limit=1)[0].leased_at is None, "it was not learned from"
        now[0] = 130.0
        ledger.lease(count=2, newest_version=0, max_staleness=0)
        ledger.commit(1, 1)
        assert ledger.groups(limit=1)[0].leased_at == 130.0 and ledger.committed_at() == {1: 130.0}


def test_a_ledger_of_the_format_before_is_read_as_it_is_and_upgraded_to_be_written(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        fill(ledger, 2)
        for column in PASSAGES:
            ledger._db.execute(f"ALTER TABLE groups DROP COLUMN {column}")
        ledger._db.execute("PRAGMA user_version = 3")
    with open_ledger(tmp_path, read_only=True) as reader:
        before = reader.groups(limit=9)
        assert len(before) == 2 and before[0].stored_at is None and reader.check() == []
    with open_ledger(tmp_path) as ledger:
        assert ledger.groups(limit=9) == before
        ledger.lease(count=2, newest_version=0, max_staleness=0)
        assert ledger.groups(limit=1)[0].leased_at is not None
    with open_ledger(tmp_path) as ledger:
        assert ledger.counts().leased == 2, "upgraded once"
