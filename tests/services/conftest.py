"""The databases that the store is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server of this test session."""
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new, empty database: of SQLite, and once more of PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/deep/down/sparring.sqlite"
        return
    with postgres.new_database(request.getfixturevalue("postgres_server")) as url:
        yield url
