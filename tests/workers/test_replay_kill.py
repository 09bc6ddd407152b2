"""kill -9 at any moment: what was acknowledged is on disk, in order, and the account adds up."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from replay_samples import group, ticket

from learner.records import GroupState
from workers.replay.ledger import ReplayLedger

ROOT = Path(__file__).parents[2]

WORKER = """
import sys
from pathlib import Path
from replay_samples import group, ticket
from workers.replay.ledger import ReplayLedger

ledger = ReplayLedger(Path(sys.argv[1]), 10**6, 1 << 40)

def say(*words):
    print(*words, flush=True)

ledger.release()
version = ledger.committed_version()
version = 0 if version is None else version + 1
index = ledger.counts().admitted
# tickets that were granted before the kill are granted again
for waiting in ledger.granted():
    ledger.put(group(waiting), None)
    say("put", waiting.index)
while True:
    tickets = [ticket(i) for i in range(index, index + 5)]
    ledger.admit(tickets)
    say("admitted", index + 5)
    for one in reversed(tickets):
        ledger.put(group(one), None)
        say("put", one.index)
    index += 5
    batch = ledger.lease(count=4, newest_version=0, max_staleness=0)
    say("leased", *[leased.index for leased in batch])
    ledger.commit(version, version)
    say("committed", version, *[leased.index for leased in batch])
    version += 1
"""


@pytest.mark.slow
def test_everything_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    database = tmp_path / "replay.sqlite"
    chance = random.Random(7)
    put: set[int] = set()
    consumed: dict[int, int] = {}
    admitted = 0
    rounds = 0
    while rounds < 6 or len(put) <= 20 or len(consumed) <= 10:
        rounds += 1
        assert rounds < 60, "too little is put between two deaths"
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(database)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        lines = first + process.stdout.read()
        process.wait()
        for line in lines.splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            kind, *numbers = line.split()
            values = [int(number) for number in numbers]
            if kind == "admitted":
                admitted = values[0]
            elif kind == "put":
                put.add(values[0])
            elif kind == "committed":
                assert not consumed.keys() & set(values[1:])  # nothing is consumed twice
                consumed |= dict.fromkeys(values[1:], values[0])
        with ReplayLedger(database, 10**6, 1 << 40, read_only=True) as ledger:
            assert ledger.check() == []
            counts = ledger.counts()
            assert counts.balanced and counts.admitted >= admitted and counts.duplicates == 0
            rows = ledger.groups(limit=10**6)
            assert [row.index for row in rows] == list(range(counts.admitted))
            for row in rows:
                if row.index in put:
                    assert row.state is not GroupState.GRANTED and row.group == group(ticket(row.index))
                if row.index in consumed:
                    assert row.state is GroupState.CONSUMED and row.produced_version == consumed[row.index]
    with ReplayLedger(database, 10**6, 1 << 40) as ledger:
        ledger.release()
        ready = [row.index for row in ledger.groups(state=GroupState.READY, limit=10**6, content=False)]
        batch = ledger.lease(count=len(ready), newest_version=0, max_staleness=0)
        assert [leased.index for leased in batch] == ready == sorted(ready)
