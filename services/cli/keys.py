"""``sparring keys``: API keys of this installation. It works on the store itself, so it needs no key and no service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.access.keys import Scope, expiry
from services.access.records import LOCAL, NewAuditEntry
from services.settings import Settings

if TYPE_CHECKING:
    from services.access.store import AccessStore

app = typer.Typer(
    help="Make, list and revoke API keys. Once a key was made, every request needs one.", no_args_is_help=True
)

_COLOURS = {"good": "green", "expired": "yellow", "revoked": "red"}


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose key it is, as the audit shows it.", show_default=False)
    ],
    scope: Annotated[
        Scope, typer.Option(help="read: look; write: also start and change jobs; admin: also read the audit.")
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            help="How long it is good (90d, 12h), or until when (2027-01-31). Default: until it is revoked.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a key and print it. It is shown this once; only its digest is kept."""
    store = _store()
    expires_at = None if expires is None else expiry(expires, datetime.now(UTC))
    key, new = store.create_key(name, scope, expires_at)
    _note(store, f"keys create {key.id} ({key.scope})")
    until = "until it is revoked" if expires_at is None else f"until {expires_at:%Y-%m-%d %H:%M} UTC"
    typer.echo(f"Key {key.id} of {key.name}, scope {key.scope}, is good {until}. It is not shown again:", err=True)
    typer.echo(new.text)


@app.command("list")
def list_(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List all keys that were ever made, without the keys themselves."""
    keys = _store().list_keys()
    if json_:
        import json

        typer.echo(json.dumps([key.model_dump(mode="json") for key in keys], indent=2))
        return
    if not keys:
        typer.echo("No keys yet; `sparring keys create NAME --scope admin` makes one.")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    now = datetime.now(UTC)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("id", "name", "scope", "state", "made", "expires"):
        table.add_column(heading, no_wrap=heading != "name")
    for key in keys:
        state = key.state_at(now)
        expires = f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else ""
        table.add_row(
            key.id,
            escape(key.name),
            key.scope,
            f"[{_COLOURS[state]}]{state}[/]",
            f"{key.created_at:%Y-%m-%d %H:%M}",
            expires,
        )
    Console().print(table)


@app.command()
def revoke(
    identity: Annotated[str, typer.Argument(metavar="ID", help="The key's id, from `sparring keys list`.")],
) -> None:
    """Make a key worthless at once, also for a service that runs."""
    store = _store()
    key = store.revoke_key(identity)
    _note(store, f"keys revoke {key.id}")
    typer.echo(f"Key {key.id} of {key.name} is revoked.")


def _store() -> AccessStore:
    from services.access.store import AccessStore

    return AccessStore(Settings.load().store_url)


def _note(store: AccessStore, action: str) -> None:
    store.note(NewAuditEntry(actor=LOCAL, action=action))
