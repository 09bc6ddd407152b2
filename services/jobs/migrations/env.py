"""Applies revisions on the connection that :mod:`services.jobs.schema` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from services.jobs.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes most things of a table only by making it anew
)
context.run_migrations()
