"""The job store's database: how it is opened, and what a transaction is.

Events and metrics are on disk before they are acknowledged (rule 11): write-ahead log, ``synchronous = FULL``.
Several processes write the same file (API, controllers, command line), so a transaction that writes takes the write lock when it
begins, and waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import OperationalError
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.orm import Session
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from learner.errors import InputError
from services.jobs.tables import Base

BUSY_TIMEOUT_SECONDS = 30.0
"""Longest wait for another process's write to the same file."""


class Database:
    """A database that is opened at first use, its tables made where they are missing. Safe to share between threads.

    Args:
        url: an SQLAlchemy database URL. The folder of an SQLite file is made too.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine | None = None
        self._lock = Lock()

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
                with engine.execution_options(writes=True).begin() as connection:
                    Base.metadata.create_all(connection)
                self._engine = engine
            return self._engine


def open_engine(url: str) -> Engine:
    """The engine of a database, with SQLite set up for several writing processes.

    Raises:
        InputError: the URL cannot be read, or its driver is not installed.
    """
    try:
        engine = create_engine(url)
    except Exception as error:  # SQLAlchemy raises many kinds here: a bad URL, an unknown dialect, a missing driver
        raise InputError(
            f"database_url: {url!r} cannot be opened ({error}); use for example sqlite:////path/to/file.sqlite"
        ) from None
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        if place.database:
            Path(place.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own; `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


@retry(
    retry=retry_if_exception_type(OperationalError),
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
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
