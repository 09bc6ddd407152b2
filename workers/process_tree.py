"""When a worker's process dies, SIGKILL included, its whole process tree dies and gives its memory back (rule 10).

``guard()`` starts a small watcher in a session of its own that outlives the worker just long enough to kill what the worker left behind:

- processes whose environment carries the worker's token. Children inherit it, also through ``setsid`` and after their parents are gone;
- children made by ``os.fork`` without ``exec``, whose environment in /proc is still their parent's: they report themselves through a pipe;
- all descendants of both.

What escapes is a child that was started with an emptied environment. Linux only, standard library only: the watcher runs this very file
without site-packages, in under 10 MB.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator

TOKEN_VARIABLE = "SPARRING_WORKER_TOKEN"
"""Tokens of the guarded processes above, outermost first, separated by commas: a guarded process may start another."""

POLL_SECONDS = 0.2
"""How often the watcher looks at its worker where the kernel has no pidfd."""

SWEEP_SECONDS = 0.02
"""Between two looks for processes that are left."""

EMPTY_SWEEPS = 3
"""Looks in a row that find nobody, after which nobody is left."""

GIVE_UP_SECONDS = 20.0
"""Longest time for which the watcher kills. Only a process that is stuck in the kernel survives SIGKILL for so long."""

_guarded: dict[int, str] = {}
"""This process's id and its token; keyed by id so that a forked child does not take itself for guarded."""


def guard() -> str:
    """Tie the fate of everything that this process starts from now on to its own. Call it first thing. Returns the token.

    Raises:
        RuntimeError: this is not Linux, or the watcher did not start.
    """
    import subprocess
    import uuid

    if os.getpid() in _guarded:
        return _guarded[os.getpid()]
    if not sys.platform.startswith("linux"):
        raise RuntimeError("Sparring's workers run on Linux only: they need /proc to end their children")
    token = uuid.uuid4().hex
    reader, writer = os.pipe()  # both close on exec
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), _started(os.getpid()), token]
    # an empty environment, so that neither this token nor an outer one makes the watcher a victim
    starter = subprocess.run(
        command, stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={}, cwd="/", start_new_session=True,
        timeout=60, check=False,
    )  # fmt: skip
    os.close(reader)
    if starter.returncode != 0:
        os.close(writer)
        raise RuntimeError(f"the watcher of the worker's process tree did not start (exit code {starter.returncode})")
    os.environ[TOKEN_VARIABLE] = ",".join(filter(None, [os.environ.get(TOKEN_VARIABLE), token]))
    os.register_at_fork(after_in_child=lambda: _report(writer))
    _guarded[os.getpid()] = token
    return token


def carriers(token: str) -> set[int]:
    """Ids of the processes whose environment carries ``token``."""
    found = set()
    for pid in _all():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                entries = file.read().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        for entry in entries:
            name, _, value = entry.partition(b"=")
            if name == TOKEN_VARIABLE.encode() and token.encode() in value.split(b","):
                found.add(pid)
    return found


def _report(writer: int) -> None:
    """In a forked child: say who it is. It keeps the pipe, so that its own forks can report too."""
    # the worker's watcher may be gone; the child must live on regardless of it
    import contextlib

    with contextlib.suppress(OSError):
        os.write(writer, f"{os.getpid()} {_started(os.getpid())}\n".encode())


def _watch(parent: int, started: str, token: str) -> None:
    """The watcher: wait for the parent's death, then kill what it left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    reports = _Reports()
    try:
        death = os.pidfd_open(parent)
    except OSError:  # the parent is gone already, or the kernel has no pidfd: polling finds out
        death = None
    while _started(parent) == started:
        reports.wait(death)
    limit = time.monotonic() + GIVE_UP_SECONDS
    empty = 0
    while time.monotonic() < limit and empty < EMPTY_SWEEPS:
        left = carriers(token) | reports.alive()
        left |= _descendants(left)
        left -= {os.getpid()}
        _kill(left)
        # who has forked and neither reported nor become another program yet holds the pipe; who just became one shows no environment yet
        empty = 0 if left or reports.open else empty + 1
        time.sleep(SWEEP_SECONDS)


class _Reports:
    """What forked children say on the pipe, which is the watcher's standard input: lines of their id and their start."""

    def __init__(self) -> None:
        os.set_blocking(0, False)
        self.started: dict[int, str] = {}
        self.rest = b""
        self.open = True

    def wait(self, death: int | None) -> None:
        """Sleep until somebody reports, or the worker dies, or a while has passed."""
        sources = [0] * self.open + ([] if death is None else [death])
        select.select(sources, [], [], POLL_SECONDS if death is None else 5.0)
        self.read()

    def read(self) -> None:
        try:
            while data := os.read(0, 65536):
                *lines, self.rest = (self.rest + data).split(b"\n")
                for line in lines:
                    pid, started = line.decode().split()
                    self.started[int(pid)] = started
            self.open = False
        except BlockingIOError:
            pass

    def alive(self) -> set[int]:
        """Who reported and still runs."""
        self.read()
        self.started = {pid: started for pid, started in self.started.items() if _started(pid) == started}
        return set(self.started)


def _kill(pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # already gone, which is what is wanted
            continue


def _all() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _started(pid: int) -> str:
    """When the process started, in clock ticks since boot, which with its id names it for good. Empty when it is gone or a zombie."""
    stat = _stat(pid)
    return "" if stat is None or stat[0] in "ZX" else stat[19]


def _alive(pid: int) -> bool:
    return _started(pid) != ""


def _descendants(roots: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in _all():
        stat = _stat(pid)
        if stat is not None and stat[0] not in "ZX":
            children.setdefault(int(stat[1]), []).append(pid)
    found: set[int] = set()
    left = list(roots)
    while left:
        for child in children.get(left.pop(), []):
            if child not in found and child not in roots:
                found.add(child)
                left.append(child)
    return found


if __name__ == "__main__":
    # detached for good: not the worker's child, so that whoever ends the worker's children does not end their watcher
    if os.fork() > 0:
        os._exit(0)
    _watch(int(sys.argv[1]), sys.argv[2], sys.argv[3])
