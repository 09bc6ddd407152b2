"""``sparring objectives``: the kinds that a job file may choose, and the values that their code must reproduce."""

from __future__ import annotations

from typing import Annotated

import typer


def objectives(
    check: Annotated[
        bool, typer.Option("--check", help="Compute every published check value, in float64 and in float32.")
    ] = False,
) -> None:
    """List the objectives that a job file may choose; with --check, show that they compute what was published."""
    if check:
        _check()
    else:
        _list()


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from learner.objectives.kinds import installed_parameters
    from learner.objectives.parameters import BUILT_IN

    table = Table(title="objective.kind, with parameters and their defaults", show_lines=True)
    for heading in ("kind", "parameters", "what it is"):
        table.add_column(heading, overflow="fold")
    for model in (*BUILT_IN, *installed_parameters()):
        fields = {name: field for name, field in model.model_fields.items() if name not in ("kind", "reference")}
        defaults = [
            f"{name} ({field.get_default(call_default_factory=True)})"
            if name != "inner"
            else "inner (dpo, or another pairwise kind)"
            for name, field in fields.items()
        ]
        table.add_row(str(model.model_fields["kind"].default), ", ".join(defaults), (model.__doc__ or "").strip())
    Console().print(table)


def _check() -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    from learner.check_values import CHECK_VALUES, EXACT, SINGLE

    table = Table(title=f"Check values (allowed: {EXACT:g} in float64, {SINGLE:g} in float32)")
    table.add_column("check")
    for heading in ("expected", "computed", "float64", "float32", ""):
        table.add_column(heading, justify="right")
    failed = 0
    for row in CHECK_VALUES:
        found = row.compute(torch.float64).reshape(-1).tolist()
        passes = row.passes()
        failed += not passes
        table.add_row(
            row.name,
            "\n".join(f"{value:.10g}" for value in row.expected),
            "\n".join(f"{value:.10g}" for value in found),
            f"{row.error(torch.float64):.0e}",
            f"{row.error(torch.float32):.0e}",
            "[green]pass[/]" if passes else "[bold red]FAIL[/]",
        )
    console = Console()
    console.print(table)
    console.print(f"{len(CHECK_VALUES) - failed} of {len(CHECK_VALUES)} pass.")
    if failed:
        raise typer.Exit(1)
