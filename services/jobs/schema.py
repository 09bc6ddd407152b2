"""The revision of the job store's tables: a new or older database is brought to the newest one when it is opened.

Revisions are files in ``migrations/versions``. Databases only go forward. Several processes may open the same database at once: one of
them changes it, in one transaction, and the others wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, column, create_engine, inspect, select, table, text

from learner.errors import InputError

NEWEST = "0003"
"""The newest revision. It stands here too, so that opening a database that has it imports no Alembic."""

FIRST = "0001"
"""The revision whose tables were made before revisions were kept."""

LOCK = 0x5350_4152
"""Names the lock under which a PostgreSQL database is changed."""

_VERSIONS = table("alembic_version", column("version_num"))


def bring_to_newest(engine: Engine, place: str) -> None:
    """Make or change the tables, where that is needed.

    Args:
        engine: of a database whose transactions take the write lock where the execution option ``writes`` is set.
        place: the database's name in messages.

    Raises:
        InputError: the database is newer than this code, or its tables are not Sparring's.
    """
    with engine.connect() as connection:
        if _revision(connection) == NEWEST:
            return
    with engine.execution_options(writes=True, changes_tables=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        found = _revision(connection)
        if found == NEWEST:  # another process was quicker
            return
        if found is None:
            _adopt(connection, place)
        elif found not in known_revisions():
            raise InputError(
                f"database_url: {place} is at revision {found!r}, which this version of Sparring does not know (its own is {NEWEST!r}); "
                "a newer Sparring made it: upgrade this one, or name another database"
            )
        _upgrade(connection, "head")


def known_revisions() -> list[str]:
    """The revisions that this code has, oldest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(select(_VERSIONS.c.version_num))
    return found


def _adopt(connection: Connection, place: str) -> None:
    """Give tables that were made before revisions were kept the first revision; none there: nothing to do.

    Raises:
        InputError: they are others.
    """
    there = _columns(connection)
    first = _first_columns()
    ours = {name: columns for name, columns in there.items() if name in first}
    if not ours:
        return
    if ours != first:
        wrong = sorted(name for name in first if ours.get(name) != first[name])
        raise InputError(
            f"database_url: {place} has tables that are not this Sparring's ({', '.join(wrong)}), and says no revision; "
            "name another database, or an empty one"
        )
    from alembic import command

    command.stamp(_config(connection), FIRST)


def _first_columns() -> dict[str, frozenset[str]]:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        _upgrade(connection, FIRST)
        columns = _columns(connection)
    engine.dispose()
    del columns["alembic_version"]
    return columns


def _columns(connection: Connection) -> dict[str, frozenset[str]]:
    look = inspect(connection)
    return {name: frozenset(each["name"] for each in look.get_columns(name)) for name in look.get_table_names()}


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command

    command.upgrade(_config(connection), revision)


def _config(connection: Connection | None = None) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
