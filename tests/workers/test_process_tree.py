"""A worker's death, however it comes, ends everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workers import process_tree

ROOT = Path(__file__).parents[2]

GONE_SECONDS = 20.0
"""Longest wait for a process to go; the machine may be busy."""

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def read_pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(process_tree._alive(pid) for pid in pids)


FAMILY = """
    import os, subprocess, sys, time
    from workers import process_tree
    token = process_tree.guard()
    assert process_tree.guard() == token
    grandchild = "import subprocess,sys; p = subprocess.Popen([sys.executable,'-S','-c','import time; time.sleep(600)'], start_new_session=True); print(p.pid, flush=True); import time; time.sleep(float(sys.argv[1]))"
    pids = []
    for life in ("600", "0"):  # one child that stays, one that leaves its child an orphan
        child = subprocess.Popen([sys.executable, "-c", grandchild, life], stdout=subprocess.PIPE, text=True)
        pids += [child.pid] * (life == "600") + [int(child.stdout.readline())]
    print(*pids, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_children_grandchildren_and_orphans_die_with_the_worker(end: signal.Signals) -> None:
    worker = run_python(FAMILY)
    pids = read_pids(worker)
    assert len(pids) == 3 and not any(gone([pid])() for pid in pids)
    worker.send_signal(end)
    worker.wait()
    assert wait_until(gone(pids), GONE_SECONDS)


def test_a_child_forked_without_exec_dies_too_and_so_does_what_it_forked() -> None:
    worker = run_python(
        """
        import os, time
        from workers import process_tree
        process_tree.guard()
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(writer, f"{os.getppid()} {os.getpid()}".encode())
            time.sleep(600)
        print(os.read(reader, 100).decode(), flush=True)
        time.sleep(600)
        """
    )
    pids = read_pids(worker)
    assert len(pids) == 2
    worker.kill()
    worker.wait()
    assert wait_until(gone(pids), GONE_SECONDS)


def test_a_worker_that_ends_by_itself_takes_its_children_along() -> None:
    worker = run_python(
        """
        import os, subprocess, sys
        from workers import process_tree
        process_tree.guard()
        print(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]).pid, flush=True)
        os._exit(3)
        """
    )
    pids = read_pids(worker)
    assert worker.wait() == 3
    assert wait_until(gone(pids), GONE_SECONDS)


def test_a_guarded_child_may_die_alone_and_its_parent_lives_on() -> None:
    worker = run_python(
        """
        import os, subprocess, sys, time
        from workers import process_tree
        process_tree.guard()
        sibling = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        inner = "import subprocess, sys, time; from workers import process_tree; process_tree.guard(); print(subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']).pid, flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE, text=True)
        print(sibling.pid, child.pid, int(child.stdout.readline()), flush=True)
        time.sleep(600)
        """
    )
    sibling, child, grandchild = read_pids(worker)
    os.kill(child, signal.SIGKILL)
    assert wait_until(gone([grandchild]), GONE_SECONDS)
    assert worker.poll() is None and not gone([sibling])()
    worker.kill()
    worker.wait()
    assert wait_until(gone([sibling]), GONE_SECONDS)


def test_the_watcher_is_small_and_ends_when_its_work_is_done() -> None:
    worker = run_python(FAMILY)
    pids = read_pids(worker)

    def watchers() -> list[int]:
        found = []
        for pid in process_tree._all():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(worker.pid).encode() in words and any(word.endswith(b"process_tree.py") for word in words):
                found.append(pid)
        return found

    (watcher,) = watchers()
    status = Path(f"/proc/{watcher}/status").read_text()
    resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
    assert resident < 16_000  # KiB
    worker.kill()
    worker.wait()
    assert wait_until(gone([*pids, watcher]), GONE_SECONDS)
