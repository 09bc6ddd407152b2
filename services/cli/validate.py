"""``sparring validate``: what a job comes to, or what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from services.jobs.memory import MemoryEstimate
    from services.jobs.validate import PromptSummary, ValidatedJob


def validate(
    file: Annotated[Path, typer.Argument(help="A job file, YAML or JSON.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also check what is named on the Hugging Face hub. Slower.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="The job runs elsewhere: do not hold it against this machine.")
    ] = False,
) -> None:
    """Check a job file. Prints the resolved job, or what is wrong with it (exit code 2)."""
    import yaml
    from rich.console import Console
    from rich.markup import escape

    from services.jobs.load import load_job
    from services.jobs.machine import Machine
    from services.jobs.validate import validate_job

    job = validate_job(load_job(file), file.parent, deep=deep, machine=None if cluster else Machine.here())
    if as_json:
        typer.echo(json.dumps(_as_data(job), indent=2, ensure_ascii=False))
        return
    typer.echo(
        yaml.safe_dump(job.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120), nl=False
    )
    notes = Console(stderr=True, highlight=False)
    notes.print()
    notes.print(escape(_prompt_line(job.prompts)), soft_wrap=True)
    notes.print(_memory_table(job.memory))
    if job.memory.unknown:
        notes.print(
            f"Not known before the models are fetched: {escape(', '.join(job.memory.unknown))}.", soft_wrap=True
        )
    for warning in job.warnings:
        notes.print(f"[bold yellow]Warning:[/] {escape(warning)}", soft_wrap=True)


def _as_data(job: ValidatedJob) -> dict[str, Any]:
    memory = [
        {"worker": item.worker, "part": item.part, "place": item.place, "bytes": item.size, "count": item.count}
        for item in job.memory.items
    ]
    return {
        "spec": job.spec.model_dump(mode="json"),
        "warnings": list(job.warnings),
        "prompts": {**vars(job.prompts), "domains": dict(job.prompts.domains)},
        "memory": {
            "items": memory,
            "main_memory_bytes": job.memory.total("main memory"),
            "gpu_bytes": job.memory.total("GPU"),
        },
    }


def _prompt_line(summary: PromptSummary) -> str:
    if not summary.prompts:
        return "Prompts: not read yet."
    parts = [f"Prompts: {summary.prompts}"]
    if summary.longest_tokens is not None:
        parts.append(f"the longest {summary.longest_tokens} tokens")
    if summary.skipped or summary.truncated:
        parts.append(f"{summary.skipped} too long and skipped, {summary.truncated} too long and cut")
    if summary.evaluation_prompts:
        parts.append(f"{summary.evaluation_prompts} held out")
    if summary.evaluation_skipped or summary.evaluation_truncated:
        parts.append(f"of the held-out source {summary.evaluation_skipped} skipped, {summary.evaluation_truncated} cut")
    return "; ".join(parts) + "."


def _memory_table(memory: MemoryEstimate) -> Table:
    from rich.table import Table

    table = Table(title="Memory, estimated", title_justify="left")
    for name in ("worker", "part", "where"):
        table.add_column(name)
    table.add_column("each", justify="right")
    table.add_column("count", justify="right")
    for item in memory.items:
        table.add_row(item.worker, item.part, item.place, _size(item.size), str(item.count))
    table.add_section()
    for place in ("main memory", "GPU"):
        total = memory.total("GPU" if place == "GPU" else "main memory")
        if total:
            table.add_row("all", "", place, _size(total), "")
    return table


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
