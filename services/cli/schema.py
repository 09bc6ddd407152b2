"""``sparring schema``: what a job file may say, as JSON schema."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON schema of a job file. Editors that know YAML schemas can complete and check with it."""
    from services.jobs.spec import JobSpec

    typer.echo(json.dumps(JobSpec.model_json_schema(), indent=2, ensure_ascii=False))
