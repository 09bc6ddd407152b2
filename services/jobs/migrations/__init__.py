"""The revisions of the job store's tables (Alembic). `services.jobs.schema` applies them."""
