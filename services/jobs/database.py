"""The job store's database: how it is opened, and what a transaction is.

Events and metrics are on disk before they are acknowledged (rule 11). Several processes write at once (API, controllers, command line).
SQLite, the default: write-ahead log, ``synchronous = FULL``, and a transaction that writes takes the write lock when it begins, and waits
for it. PostgreSQL: a transaction that reads and then writes locks the rows that it goes by, first the job's, so that nothing comes between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_LOCKED, OperationalError
from threading import RLock
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import OperationalError as Unreachable
from sqlalchemy.orm import Session
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from learner.errors import InputError
from services.jobs.schema import bring_to_newest

BUSY_TIMEOUT_SECONDS = 30.0
"""Longest wait for another process's write to the same file."""


MOST_CONNECTIONS = 30
"""Beside the few that stay open: the service's threads may ask at the same time, and PostgreSQL takes 100 from all."""


class Database:
    """A database that is opened at first use, and brought to the newest revision then. Safe to share between threads.

    Args:
        url: an SQLAlchemy database URL, of SQLite or PostgreSQL. The folder of an SQLite file is made too.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine | None = None
        self._lock = RLock()  # a signal may come, and ask for the database, while it is held

    def check(self) -> None:
        """Raise when the database cannot be reached."""
        with self._read() as session:
            session.execute(select(1))

    def close(self) -> None:
        """Give the connections back. The next use opens them again."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._opened()) as session, session.begin():
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        engine = self._opened().execution_options(writes=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is None:
                engine = open_engine(self._url)
                try:
                    bring_to_newest(engine, without_password(self._url))
                except DatabaseError as error:
                    engine.dispose()
                    # SQLite says that a file is no database by the base class; any other kind is a mistake of ours
                    if type(error) not in (Unreachable, DatabaseError):
                        raise
                    raise InputError(
                        f"database_url: {without_password(self._url)} cannot be opened ({_one_line(error.orig)}); is it there, and may this "
                        "user write to it?"
                    ) from None
                except BaseException:
                    engine.dispose()
                    raise
                self._engine = engine
            return self._engine


def open_engine(url: str) -> Engine:
    """The engine of a database, with SQLite set up for several writing processes.

    Raises:
        InputError: the URL cannot be read, or its driver is not installed.
    """
    try:
        # a connection that a restarted server or a firewall closed is noticed before it is used
        engine = create_engine(url, pool_pre_ping=True, max_overflow=MOST_CONNECTIONS)
    except Exception as error:  # SQLAlchemy raises many kinds here: a bad URL, an unknown dialect, a missing driver
        raise InputError(
            f"database_url: {without_password(url)!r} cannot be opened ({without_password(str(error))}); use for example "
            "sqlite:////path/to/file.sqlite or postgresql+psycopg://user:password@host/database"
        ) from None
    place = make_url(url)
    if place.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(
            f"database_url: {without_password(url)!r} is a {place.get_backend_name()} database; use SQLite or PostgreSQL"
        )
    if place.get_backend_name() == "sqlite":
        if place.database and not place.database.startswith(
            "file:"
        ):  # an SQLite URI is no path, and names what is there
            try:
                Path(place.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"database_url: the folder of {place.database} cannot be made ({error.strerror}); see to SPARRING_HOME or "
                    "SPARRING_DATABASE_URL"
                ) from None
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def without_password(url: str) -> str:
    """A database URL, or a message that quotes one, as it may be shown."""
    return re.sub(r"(://[^:@/\s]*):[^\s]*@", r"\1:***@", url)


def _one_line(error: object) -> str:
    return without_password(" ".join(str(error).split()))


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own; `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and error.sqlite_errorcode & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED)


@retry(
    retry=retry_if_exception(_is_busy),
    stop=stop_after_delay(BUSY_TIMEOUT_SECONDS),
    wait=wait_random(0.01, 0.1),
    reraise=True,
)
def _switch_to_wal(cursor: Any) -> None:
    # SQLite does not wait for the lock here, although busy_timeout is set: two processes may open a new file together.
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would be refused at once when another process wrote between.
    options = connection.get_execution_options()
    writes = options.get("writes", False)
    # a table that is made anew to change it must not take the rows that refer to it along; it cannot be said inside a transaction
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA foreign_keys = {'OFF' if options.get('changes_tables', False) else 'ON'}")
    cursor.close()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
