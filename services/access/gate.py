"""Decides who asks: by a key of the store, by the installation's own key, or, where no key exists, as a person of this machine."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime

from services.access.keys import ApiKey, Scope
from services.access.records import INSTALLATION, LOCAL
from services.access.store import AccessStore


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may do. ``actor`` and ``key_id`` are as the audit has them."""

    scope: Scope
    actor: str
    key_id: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether no key was asked for."""
        return self.actor == LOCAL and self.key_id is None


@dataclass(frozen=True)
class Unknown:
    """Nobody who may come in. ``reason`` says why; ``wrong`` is whether there was a key at all."""

    reason: str
    wrong: bool


class Gate:
    """Tells callers apart.

    A key is asked for off loopback, where the installation has one of its own, and wherever a key was ever made: a service behind a proxy
    must not open itself to everybody when its last key is revoked or expires.

    Args:
        store: where the keys are.
        installation_key: the setting SPARRING_API_KEY. A key of the store that stands there keeps its own scope.
        loopback: whether the service listens for this machine only.
    """

    def __init__(self, store: AccessStore, installation_key: str | None, *, loopback: bool) -> None:
        self._store = store
        self._installation_key = installation_key
        self._locked = installation_key is not None or not loopback

    def locked(self) -> bool:
        """Whether a key is asked for. May read the store."""
        self._locked = self._locked or self._store.any_key()  # once made, keys are never deleted
        return self._locked

    def identify(self, text: str | None, now: datetime) -> Caller | Unknown:
        """Who sent this key, or no key. May read the store."""
        if not self.locked():
            return Caller(Scope.ADMIN, LOCAL)
        if not text:
            return Unknown(
                "a key is asked for: send Authorization: Bearer KEY; the command line takes it from SPARRING_API_KEY, and "
                "`sparring keys create` makes one",
                wrong=False,
            )
        found = self._store.find_key(text)
        if found is not None:
            return _caller(found, now)
        if self._installation_key is not None and hmac.compare_digest(text.encode(), self._installation_key.encode()):
            return Caller(Scope.ADMIN, INSTALLATION)
        return Unknown("the key is none of this service's; `sparring keys list` shows those that it knows", wrong=True)


def _caller(key: ApiKey, now: datetime) -> Caller | Unknown:
    if key.good_at(now):
        return Caller(key.scope, key.name, key.id)
    return Unknown(f"the key {key.id} is {key.state_at(now)}; `sparring keys create` makes another", wrong=True)
