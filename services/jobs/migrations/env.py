"""Applies revisions on the connection that :mod:`services.jobs.schema` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    render_as_batch=True,  # SQLite changes most things of a table only by making it anew
)
context.run_migrations()
