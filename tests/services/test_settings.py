"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.errors import InputError
from services.settings import Settings, is_loopback


def test_defaults_bind_to_loopback_and_keep_the_store_in_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARRING_HOME", str(tmp_path / "home"))
    settings = Settings.load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8700)
    assert settings.store_url == f"sqlite:///{tmp_path}/home/sparring.sqlite"
    settings.check_exposure()


def test_off_loopback_a_key_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_HOST", "0.0.0.0")
    with pytest.raises(InputError, match="SPARRING_API_KEY must be set"):
        Settings.load().check_exposure()
    monkeypatch.setenv("SPARRING_API_KEY", "secret")
    settings = Settings.load()
    settings.check_exposure()
    assert "secret" not in repr(settings)


def test_data_roots_are_separated_by_colons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARRING_DATA_ROOTS", f"{tmp_path}/a:{tmp_path}/b")
    assert Settings.load().data_roots == (tmp_path / "a", tmp_path / "b")
    assert Path.cwd() in Settings.load().readable_roots


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_PORT", "many")
    with pytest.raises(InputError, match="SPARRING_PORT: 'many' is not allowed"):
        Settings.load()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("api", False)],
)
def test_which_hosts_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
