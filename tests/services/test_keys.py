"""API keys: what is stored of them, whom the gate takes for whom, and the commands that make them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from learner.errors import InputError
from services.access.gate import Caller, Gate, Unknown
from services.access.keys import KEY_PATTERN, NewKey, Scope, expiry, key_digest, key_id
from services.access.records import INSTALLATION, LOCAL
from services.access.store import AccessStore, UnknownKey
from services.cli.main import app

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(database_url: str) -> Iterator[AccessStore]:
    opened = AccessStore(database_url, clock=lambda: NOW)
    yield opened
    opened.close()


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[AccessStore]:
    opened = AccessStore(f"sqlite:///{tmp_path}/keys.sqlite", clock=lambda: NOW)
    yield opened
    opened.close()


def test_a_scope_includes_those_below_it() -> None:
    assert [[one.includes(other) for other in Scope] for one in Scope] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_keys_are_long_random_and_know_their_id() -> None:
    made = [NewKey.make() for _ in range(200)]
    assert len({new.text for new in made}) == len({new.id for new in made}) == 200
    for new in made:
        assert re.fullmatch(KEY_PATTERN, new.text) and key_id(new.text) == new.id
        assert new.text not in repr(new)


@given(st.text())
def test_whatever_is_sent_has_an_id_or_none(text: str) -> None:
    assert key_id(text) is None or re.fullmatch(KEY_PATTERN, text)


def test_a_key_is_found_by_all_of_it_and_only_its_digest_is_stored(store: AccessStore) -> None:
    key, new = store.create_key("anna", Scope.WRITE, NOW + timedelta(days=1))
    assert store.find_key(new.text) == key
    for wrong in (
        new.text[:-1] + ("a" if new.text[-1] != "a" else "b"),
        NewKey.make().text,
        new.text.replace(new.id, "a" * 8),
        new.id,
        "",
        "é",
    ):
        assert store.find_key(wrong) is None
    assert [each.model_dump() for each in store.list_keys()] == [key.model_dump()]
    assert new.text not in repr(store.list_keys()) and key_digest(new.text) not in repr(store.list_keys())


def test_the_key_itself_is_nowhere_on_disk(lite: AccessStore, tmp_path: Path) -> None:
    _, new = lite.create_key("anna", Scope.WRITE)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key_digest(new.text).encode() in stored
    secret = new.text.removeprefix(f"sparring_{new.id}_")
    assert secret != new.text and secret.encode() not in stored


def test_a_revoked_key_stays_revoked_from_the_first_time(lite: AccessStore) -> None:
    key, new = lite.create_key("anna", Scope.READ)
    assert lite.any_good_key()
    assert lite.revoke_key(key.id).revoked_at == NOW
    lite._clock = lambda: NOW + timedelta(days=9)
    assert lite.revoke_key(key.id).revoked_at == NOW
    assert not lite.any_good_key() and lite.any_key()
    found = lite.find_key(new.text)
    assert found is not None and found.state_at(NOW) == "revoked"
    with pytest.raises(UnknownKey, match="there is no key 'nobody'"):
        lite.revoke_key("nobody")


def test_a_key_is_good_until_the_moment_that_it_expires(lite: AccessStore) -> None:
    key, _ = lite.create_key("anna", Scope.READ, NOW + timedelta(hours=1))
    assert key.good_at(NOW + timedelta(minutes=59)) and not key.good_at(NOW + timedelta(hours=1))
    lite._clock = lambda: NOW + timedelta(hours=1)
    assert not lite.any_good_key()


@pytest.mark.parametrize("name", ["", " anna", "a" * 65, "a\nb", "\x1b[31m"])
def test_names_that_would_break_a_table_or_a_log_are_refused(lite: AccessStore, name: str) -> None:
    with pytest.raises(InputError, match="is not a name"):
        lite.create_key(name, Scope.READ)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", NOW + timedelta(days=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00:00+01:00", datetime(2027, 1, 31, 11, tzinfo=UTC)),
    ],
)
def test_when_a_key_expires_is_a_time_from_now_or_a_date(text: str, expected: datetime) -> None:
    assert expiry(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "0d", "999999w", "2026-04-01", "-3d", "1y", "9999-12-31T23:59:59-12:00"])
def test_an_expiry_that_cannot_be_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="--expires"):
        expiry(text, NOW)


def test_without_any_key_loopback_is_open_and_other_addresses_are_not(lite: AccessStore) -> None:
    assert Gate(lite, None, loopback=True).identify(None, NOW) == Caller(Scope.ADMIN, LOCAL)
    assert isinstance(Gate(lite, None, loopback=False).identify(None, NOW), Unknown)


def test_once_a_key_was_made_one_is_asked_for_even_when_it_is_revoked(lite: AccessStore) -> None:
    gate = Gate(lite, None, loopback=True)
    assert not gate.locked()
    key, new = lite.create_key("anna", Scope.READ)
    assert gate.identify(new.text, NOW) == Caller(Scope.READ, "anna", key.id)
    lite.revoke_key(key.id)
    for sent in (None, new.text):
        assert isinstance(gate.identify(sent, NOW), Unknown)
    assert isinstance(Gate(lite, None, loopback=True).identify(None, NOW), Unknown)


def test_the_installations_key_is_an_admin_but_a_key_of_the_store_keeps_its_scope(lite: AccessStore) -> None:
    gate = Gate(lite, "k3y", loopback=True)
    assert gate.identify("k3y", NOW) == Caller(Scope.ADMIN, INSTALLATION)
    for wrong in ("k3", "k3yy", "K3Y", "", None, "é"):
        assert isinstance(gate.identify(wrong, NOW), Unknown)
    key, new = lite.create_key("anna", Scope.READ)
    same = Gate(lite, new.text, loopback=True)
    assert same.identify(new.text, NOW) == Caller(Scope.READ, "anna", key.id)
    lite.revoke_key(key.id)
    assert isinstance(same.identify(new.text, NOW), Unknown)


# --- commands


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_keys_are_made_listed_and_revoked_from_the_command_line(home: Path) -> None:
    assert "No keys yet" in run("keys", "list")
    text = run("keys", "create", "anna", "--scope", "write", "--expires", "90d").strip()
    assert re.fullmatch(KEY_PATTERN, text)
    shown = run("keys", "list")
    identity = key_id(text)
    assert identity is not None and identity in shown and "write" in shown and "good" in shown
    assert text not in shown and text not in run("keys", "list", "--json")
    assert "is revoked" in run("keys", "revoke", identity)
    (listed,) = json.loads(run("keys", "list", "--json"))
    assert listed["revoked_at"] is not None and listed["name"] == "anna"
    noted = [json.loads(line) for line in run("audit", "--json").splitlines()]
    assert [entry["action"] for entry in noted] == [f"keys revoke {identity}", f"keys create {identity} (write)"]
    assert {entry["actor"] for entry in noted} == {LOCAL}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "anna", "--scope", "read", "--expires", "soon"), "--expires"),
        (("create", "a\tb", "--scope", "read"), "is not a name"),
        (("revoke", "nobody"), "sparring keys list"),
    ],
)
def test_bad_input_of_the_commands_is_one_sentence(home: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)


def test_a_real_service_off_loopback_refuses_to_start_without_a_key(home: Path) -> None:
    command = [str(Path(sys.executable).with_name("sparring")), "serve", "--host", "0.0.0.0", "--port", "0"]

    def refused() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and done.stdout == ""
        return done.stderr

    said = refused()
    assert said.count("\n") == 1 and "sparring keys create" in said and "SPARRING_API_KEY" in said
    text = run("keys", "create", "anna", "--scope", "read").strip()
    run("keys", "revoke", key_id(text) or "")
    assert refused() == said  # a revoked key lets nobody in
