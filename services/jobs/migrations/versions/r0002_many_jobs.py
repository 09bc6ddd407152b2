"""Priorities, labels to find jobs by, requests that are done once, merged metrics, and indexes for many jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Change the tables, and fill what can be found out from what is there."""
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("running_since", sa.DateTime(), nullable=True))
    op.add_column("jobs", sa.Column("running_from", sa.Double(), nullable=True))
    op.drop_index("ix_jobs_state", "jobs")
    op.create_index("ix_jobs_state_number", "jobs", ["state", "number"])
    queue = ["state", "runner", "priority", "queued_at", "number"]
    op.create_index("ix_jobs_state_runner_priority_queued_at_number", "jobs", queue)

    labels = op.create_table(
        "labels",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.String(512), nullable=False),
        sa.Column("job_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name", "value", "job_number", name="pk_labels"),
        sa.ForeignKeyConstraint(["job_number"], ["jobs.number"], name="fk_labels_job_number_jobs"),
    )
    op.create_index("ix_labels_job_number", "labels", ["job_number"])
    jobs = sa.table("jobs", sa.column("number", sa.Integer()), sa.column("labels", sa.JSON()))
    there = op.get_bind().execute(sa.select(jobs.c.number, jobs.c.labels)).all()
    op.bulk_insert(
        labels,
        [
            {"name": name, "value": value, "job_number": number}
            for number, labelled in there
            for name, value in labelled.items()
        ],
    )

    op.create_table(
        "requests",
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_requests"),
    )
    op.create_index("ix_requests_created_at", "requests", ["created_at"])

    if op.get_context().dialect.name == "postgresql":  # SQLite's integers are large enough as they are
        op.alter_column("metrics", "number", type_=sa.BigInteger())
        op.execute("ALTER SEQUENCE metrics_number_seq AS bigint")
    op.add_column("metrics", sa.Column("points", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("metrics", sa.Column("low", sa.Double(), nullable=True))
    op.add_column("metrics", sa.Column("high", sa.Double(), nullable=True))

    op.add_column("preferences", sa.Column("domain", sa.String(255), nullable=True))
    sent = sa.table("preferences", sa.column("body", sa.JSON()), sa.column("domain", sa.String()))
    op.execute(sa.update(sent).values(domain=sent.c.body["domain"].as_string()))
