"""Revisions of the job store's tables, on real databases."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from learner.errors import InputError
from services.jobs import schema
from services.jobs.database import open_engine
from services.jobs.store import JobStore
from services.jobs.tables import Base


def test_a_new_database_has_exactly_the_tables_of_the_models(database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store = JobStore(database_url)
    store.check()
    store.close()
    engine = open_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_the_newest_revision_is_the_one_that_the_code_names() -> None:
    assert schema.known_revisions()[-1] == schema.NEWEST


def test_every_older_database_is_brought_to_the_newest_revision(database_url: str) -> None:
    engine = open_engine(database_url)
    for revision in schema.known_revisions():
        with engine.execution_options(writes=True, changes_tables=True).begin() as connection:
            schema._upgrade(connection, revision)
        schema.bring_to_newest(engine, "here")
        with engine.connect() as connection:
            assert schema._revision(connection) == schema.NEWEST
        with engine.execution_options(writes=True, changes_tables=True).begin() as connection:
            for name in inspect(connection).get_table_names():
                connection.exec_driver_sql(
                    f"DROP TABLE {name}" + (" CASCADE" if engine.dialect.name == "postgresql" else "")
                )
    engine.dispose()


def test_tables_from_before_revisions_are_adopted_with_what_they_hold(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.sqlite"
    old = create_engine(url)
    with old.begin() as connection:
        schema._upgrade(connection, schema.FIRST)
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(
            text(
                "INSERT INTO jobs (number, id, name, state, spec, labels, runner, home, fingerprint, created_at, queued_at, attempt, "
                "restarts, progress) VALUES (1, 'old-abcdef', 'old', 'queued', '{}', '{\"team\": \"a\"}', 'service', '/', 'f', "
                "'2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000', 1, 0, 0.0)"
            )
        )
    old.dispose()
    store = JobStore(url)
    assert store.get("old-abcdef").metadata == {"team": "a"}
    store.append_event("old-abcdef", "a", "b")
    store.close()


def test_tables_of_somebody_else_are_refused_in_one_sentence(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.sqlite"
    other = create_engine(url)
    with other.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER, title TEXT)"))
    other.dispose()
    with pytest.raises(
        InputError, match=r"other.sqlite has tables that are not this Sparring's \(events, jobs, .* name another"
    ):
        JobStore(url).check()


def test_a_newer_database_is_refused_in_one_sentence(database_url: str) -> None:
    store = JobStore(database_url)
    store.check()
    store.close()
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(InputError, match="is at revision '9999', which this version of Sparring does not know"):
        JobStore(database_url).check()


def open_it(url: str) -> None:
    """What each of several processes does."""
    store = JobStore(url)
    store.check()
    store.close()


@pytest.mark.timeout(120)
def test_several_processes_open_a_new_database_at_once(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=open_it, args=(database_url,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_password_is_never_in_a_message() -> None:
    for url in ("postgresql+psycopg://anna:s3cret@127.0.0.1:1/x", "mysql://anna:s3cret@host/x", "nope://anna:s3cret@h"):
        with pytest.raises(InputError) as caught:
            JobStore(url).check()
        assert "s3cret" not in str(caught.value) and "anna" in str(caught.value)
