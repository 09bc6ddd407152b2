"""A PostgreSQL server for tests: real, on a free port, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg

INSTALL = "install it (scripts/system_packages.sh does so on Debian: apt-get install postgresql), or put initdb and postgres on the PATH"


class PostgresMissing(RuntimeError):
    """The programs of PostgreSQL are not on this machine."""


def programs() -> Path:
    """The folder of initdb and postgres, the newest where there are several.

    Raises:
        PostgresMissing: there is none.
    """
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not versions:
        raise PostgresMissing(f"these tests need a PostgreSQL server of their own, and there is no initdb: {INSTALL}")
    return versions[-1].parent


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A running server; gives the URL of its maintenance database. Everything it wrote is removed in the end."""
    bin_folder = programs()
    folder = Path(tempfile.mkdtemp(prefix="sparring-postgres-"))
    user, run_as = _user()
    if run_as:
        shutil.chown(folder, user)
    data = folder / "data"
    try:
        # trusted without a password: it listens on loopback only, with nothing in it but what tests wrote
        _run(
            [
                *run_as,
                str(bin_folder / "initdb"),
                "-D",
                str(data),
                "-U",
                "tests",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ]
        )
        with socket.create_server(("127.0.0.1", 0)) as free:  # just before it is used: others look for ports, too
            port = free.getsockname()[1]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200"
        control = [*run_as, str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-t", "60"]
        _run([*control, "-l", str(folder / "log"), "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """An empty database on the server; gives its URL."""
    name = f"test_{uuid.uuid4().hex}"
    address = server_url.replace("+psycopg", "")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    try:
        yield f"{server_url.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


def _user() -> tuple[str, list[str]]:
    """Who runs the server, and the command that becomes that user: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name, []
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name, ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups"]
    raise PostgresMissing(f"root cannot run PostgreSQL, and there is no user postgres to run it: {INSTALL}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {done.stdout}{done.stderr}")
