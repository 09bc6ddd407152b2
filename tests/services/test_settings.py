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
    settings.check_exposure(lambda: False)


def test_off_loopback_a_key_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_HOST", "0.0.0.0")
    with pytest.raises(InputError, match="there must be a key; make one with `sparring keys create"):
        Settings.load().check_exposure(lambda: False)
    Settings.load().check_exposure(lambda: True)
    monkeypatch.setenv("SPARRING_API_KEY", "secret")
    settings = Settings.load()
    settings.check_exposure(lambda: False)
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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SPARRING_RATE_LIMIT", "often", "reads like 600/minute"),
        ("SPARRING_CORS_ORIGINS", "*", "without a path or \\*"),
        ("SPARRING_CORS_ORIGINS", "https://a.example,https://b.example/app", "https://b.example/app' is no origin"),
    ],
)
def test_a_limit_or_an_origin_that_cannot_be_is_named(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"{variable}.*{said}"):
        Settings.load()


def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_CORS_ORIGINS", "https://a.example, http://localhost:3000")
    assert Settings.load().cors_origins == ("https://a.example", "http://localhost:3000")


def test_secrets_come_from_files_where_the_variables_do_not_say_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("key-in-a-file\n")
    (tmp_path / "password").write_text("p@ss/word\n")
    monkeypatch.setenv("SPARRING_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("SPARRING_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("SPARRING_DATABASE_URL", "postgresql://sparring@postgres/sparring")
    settings = Settings.load()
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "key-in-a-file"
    assert settings.store_url == "postgresql://sparring:p%40ss%2Fword@postgres/sparring"
    assert "p@ss" not in repr(settings)
    monkeypatch.setenv("SPARRING_API_KEY", "key-in-a-variable")
    assert Settings.load().api_key != settings.api_key
    monkeypatch.setenv("SPARRING_DATABASE_URL", "nonsense")
    assert Settings.load().store_url == "nonsense"


def test_a_secret_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARRING_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"SPARRING_API_KEY_FILE: .*none.* cannot be read \(No such file"):
        Settings.load()
    (tmp_path / "empty").touch()
    monkeypatch.setenv("SPARRING_API_KEY_FILE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"SPARRING_API_KEY_FILE: .*empty.* the file is empty"):
        Settings.load()
