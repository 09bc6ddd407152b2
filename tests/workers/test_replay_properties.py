"""Whatever happens in whatever order: the account adds up, the bounds hold, nothing is learned from twice under one pass."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from replay_samples import group, ticket

from learner.records import GroupState, SkipReason, Stage
from workers.replay.ledger import ReplayLedger
from workers.replay.rows import PutResult

MAX_GROUPS = 6
MAX_BYTES = 3000
INDICES = st.integers(0, 11)
COUNTS = st.integers(1, 4)


class ReplayMachine(RuleBasedStateMachine):
    """The ledger against a dictionary of states."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sparring-test-"))
        self.ledger = self.open()
        self.states: dict[int, GroupState] = {}
        self.versions: dict[int, int] = {}
        self.leased: list[int] = []
        """In the order of the first pass."""
        self.passed: dict[int, int] = {}
        self.committed = -1
        self.step = 0
        self.produced: dict[int, int] = {}

    def open(self) -> ReplayLedger:
        return ReplayLedger(self.folder / "replay.sqlite", MAX_GROUPS, MAX_BYTES)

    def teardown(self) -> None:
        assert self.ledger.check() == []
        self.ledger.close()
        shutil.rmtree(self.folder)

    @rule(indices=st.lists(INDICES, max_size=5), attempt=st.integers(0, 2))
    def admit(self, indices: list[int], attempt: int) -> None:
        version = max(self.committed, 0)
        new = self.ledger.admit([ticket(index, version=version, attempt=attempt) for index in indices])
        fresh = {index for index in indices if index not in self.states}
        assert new == len(fresh)
        self.states |= dict.fromkeys(fresh, GroupState.GRANTED)

    @precondition(lambda self: self.states)
    @rule(
        data=st.data(),
        skip=st.sampled_from([None, None, None, *SkipReason]),
        tokens=st.integers(1, 60),
        age=st.integers(0, 2),
    )
    def put(self, data: st.DataObject, skip: SkipReason | None, tokens: int, age: int) -> None:
        index = data.draw(st.sampled_from(sorted(self.states)))
        version = max(self.committed - age, 0)
        result = self.ledger.put(group(ticket(index, version=version), tokens=tokens), skip)
        if self.states[index] is not GroupState.GRANTED:
            assert result is PutResult.DUPLICATE
        elif skip is not None:
            assert result is PutResult.SKIPPED
            self.states[index] = GroupState.SKIPPED
        elif result is PutResult.STORED:
            self.states[index], self.versions[index] = GroupState.READY, version
        else:
            assert result is PutResult.FULL and self.ledger.held()[0] > 0

    @precondition(lambda self: self.states)
    @rule(data=st.data(), stage=st.sampled_from(Stage))
    def fail(self, data: st.DataObject, stage: Stage) -> None:
        index = data.draw(st.sampled_from(sorted(self.states)))
        before = self.states[index]
        failed = self.ledger.fail(f"job/r0/{index}", stage, "because")
        assert failed == (before in (GroupState.GRANTED, GroupState.FAILED))
        if failed:
            self.states[index] = GroupState.FAILED

    @rule(count=COUNTS, minimum=st.none() | st.just(1), staleness=st.integers(0, 2))
    def lease(self, count: int, minimum: int | None, staleness: int) -> None:
        newest = max(self.committed, 0)
        batch = self.ledger.lease(count=count, newest_version=newest, max_staleness=staleness, minimum=minimum)
        for index, state in self.states.items():
            if state is GroupState.READY and self.versions[index] < newest - staleness:
                self.states[index] = GroupState.EXPIRED
        ready = sorted(index for index, state in self.states.items() if state is GroupState.READY)
        expected = ready[:count] if len(ready) >= (count if minimum is None else minimum) else []
        assert [leased.index for leased in batch] == expected
        for index in expected:
            self.states[index], self.passed[index] = GroupState.LEASED, 0
        self.leased += expected

    @rule(number=st.integers(1, 3), count=COUNTS, minimum=st.none() | st.just(1))
    def lease_again(self, number: int, count: int, minimum: int | None) -> None:
        batch = self.ledger.lease(
            count=count, newest_version=max(self.committed, 0), max_staleness=99, pass_number=number, minimum=minimum
        )
        open_rows = [index for index in self.leased if self.passed[index] == number - 1]
        expected = open_rows[:count] if len(open_rows) >= (count if minimum is None else minimum) else []
        assert [leased.index for leased in batch] == expected
        for index in expected:
            self.passed[index] = number

    @rule(jump=st.integers(1, 2))
    def commit(self, jump: int) -> None:
        self.committed += jump
        self.step += 1
        assert self.ledger.commit(self.committed, self.step, groups=len(self.leased)) == len(self.leased)
        for index in self.leased:
            self.states[index], self.produced[index] = GroupState.CONSUMED, self.committed
        self.leased = []

    @precondition(lambda self: self.committed >= 0)
    @rule()
    def commit_again(self) -> None:
        consumed = list(self.produced.values()).count(self.committed)
        assert self.ledger.commit(self.committed, self.step) == consumed

    @rule()
    def release(self) -> None:
        assert self.ledger.release() == len(self.leased)
        for index in self.leased:
            self.states[index] = GroupState.READY
        self.leased = []

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = self.open()

    @invariant()
    def the_account_adds_up(self) -> None:
        counts = self.ledger.counts()
        states = list(self.states.values())
        assert counts.balanced and counts.admitted == len(states)
        for state in (GroupState.GRANTED, GroupState.READY, GroupState.LEASED, GroupState.CONSUMED, GroupState.EXPIRED):
            assert getattr(counts, state.value) == states.count(state)
        assert sum(counts.skipped.values()) == states.count(GroupState.SKIPPED)
        assert sum(counts.failed.values()) == states.count(GroupState.FAILED)
        assert [one.index for one in self.ledger.granted()] == sorted(
            index for index, state in self.states.items() if state is GroupState.GRANTED
        )

    @invariant()
    def the_bounds_hold(self) -> None:
        groups, size = self.ledger.held()
        assert groups <= MAX_GROUPS and size <= MAX_BYTES

    @invariant()
    def consumption_is_never_taken_back(self) -> None:
        assert self.ledger.committed_version() == (None if self.committed < 0 else self.committed)
        rows = {row.index: row.produced_version for row in self.ledger.groups(limit=100, content=False)}
        assert {index: version for index, version in rows.items() if version is not None} == self.produced


TestReplayMachine = ReplayMachine.TestCase
TestReplayMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
