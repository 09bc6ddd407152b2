"""``sparring doctor``: what is wrong with a machine or a cluster, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.doctor.findings import Finding


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST:PORT", help="Look at every node of this Ray cluster too.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model that workers must be able to read: a folder, or a name on the hub.",
            show_default=False,
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also import torch, transformers and vLLM. Takes a minute.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a machine or a cluster: versions, GPU, ports, disk, memory, clocks. Exit code 1 when there is a problem."""
    from services.doctor.examine import examine
    from services.doctor.findings import Status, worst
    from services.settings import Settings

    findings = examine(Settings.load(), address=address, model=model, deep=deep)
    status = worst(findings)
    if as_json:
        import json

        said = {"status": status, "findings": [finding.model_dump(mode="json") for finding in findings]}
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        _print(findings)
    if status is Status.PROBLEM:
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from services.doctor.findings import Status

    colours = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("host", "check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("host", "check", ""))
    for finding in findings:
        colour = colours[finding.status]
        words = [escape(text) for text in (finding.found, finding.advice)]
        table.add_row(escape(finding.host), finding.subject, f"[{colour}]{finding.status}[/]", *words)
    console = Console()
    console.print(table)
    counts = {status: sum(finding.status is status for finding in findings) for status in Status}
    console.print(f"{counts[Status.OK]} ok, {counts[Status.WARNING]} warnings, {counts[Status.PROBLEM]} problems.")
