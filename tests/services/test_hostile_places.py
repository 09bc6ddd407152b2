"""A home or a database that cannot be, as a person may name it by mistake: a sentence that names the variable, and exit code 2."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from learner.errors import InputError
from services.client import Client
from services.jobs.store import JobStore
from services.settings import Settings


def test_a_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPARRING_HOME", "SPARRING_DATA_ROOTS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "~nobody-here/x")
            with pytest.raises(InputError, match=rf"^{name}: .*there is no such user's home; write the whole path"):
                Settings.load()


def test_a_home_that_is_a_file_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/sparring")):
        monkeypatch.setenv("SPARRING_HOME", str(home))
        settings = Settings.load()
        with pytest.raises(InputError, match=rf"^SPARRING_HOME: {home} cannot be made \("):
            settings.make_home()
        with pytest.raises(InputError, match=r"^database_url: "):
            JobStore(settings.store_url).check()


@pytest.mark.parametrize("content", [b"not a database" * 500, b"SQLite format 3\0garbage"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sparring.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^database_url: sqlite:///.* cannot be opened \(file is not a database\)"):
        JobStore(f"sqlite:///{path}").check()
    assert path.read_bytes() == content


def test_a_database_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparring.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE another (x)")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"^database_url: .*readonly database"):
        JobStore(f"sqlite:///file:{path}?mode=ro&uri=true").check()
    assert time.monotonic() - began < 10


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--url \(SPARRING_URL\): 'http://\[::' is no address"):
        Client("http://[::")
