"""``sparring scorer``: train a preference scorer from your own pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from learner.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from workers.scorers.training_config import ScorerReport

app = typer.Typer(help="Preference scorers.", no_args_is_help=True)


@app.callback()
def _scorer() -> None:
    """Keep `train` a sub-command of its own."""


@app.command()
def train(
    pairs: Annotated[
        Path,
        typer.Argument(help="JSON Lines: prompt, response_a, response_b, preference_b; or prompt, chosen, rejected."),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the model and its report.")],
    start: Annotated[
        str | None, typer.Option("--from", help="PairRM to fine-tune: a folder or a hub name. Default: a new model.")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of a new model: tiny, small or base.")] = "tiny",
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder with a tokenizer for a new model. Default: train one.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1200,
    batch: Annotated[int, typer.Option(help="Pairs in a step.")] = 32,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default by size.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the pairs to test on, split by prompt.")] = 0.1,
    max_source_tokens: Annotated[int, typer.Option(help="Prompts are cut to this length.")] = 1224,
    max_total_tokens: Annotated[int, typer.Option(help="Prompt and both answers.")] = 2048,
    strip_thinking: Annotated[bool, typer.Option(help="Leave <think>...</think> out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="torch threads.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal models.")] = 0,
) -> None:
    """Train a PairRM from preference pairs and say what it is worth on pairs that it has not seen."""
    from workers.scorers.training_config import TrainScorerConfig

    try:
        config = TrainScorerConfig.model_validate(
            {
                "start": start,
                "size": size,
                "tokenizer": tokenizer,
                "steps": steps,
                "batch_size": batch,
                "learning_rate": lr,
                "held_out": held_out,
                "max_source_tokens": max_source_tokens,
                "max_total_tokens": max_total_tokens,
                "strip_thinking": strip_thinking,
                "device": device,
                "threads": threads,
                "seed": seed,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['input']!r}: {first['msg']}") from None

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from workers.scorers.preferences import read_preferences

    read = read_preferences(pairs)
    console = Console()
    console.print(f"{len(read)} pairs from {pairs}")

    from workers.scorers.reliability import plot_reliability
    from workers.scorers.training import REPORT_FILE, train_pairrm
    from workers.scorers.training_config import TrainProgress

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as bars:
        tasks = {
            stage: bars.add_task(stage, total=None, visible=False, note="") for stage in ("tokenise", "train", "test")
        }

        def show(progress: TrainProgress) -> None:
            note = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, visible=True, note=note)

        report = train_pairrm(config, read, out, show)
    plot_reliability(report, out / RELIABILITY_FILE)
    for table in (_summary(report), _calibration(report)):
        console.print(table)
    console.print(f"Model: {out}\nReport: {out / REPORT_FILE} and {out / RELIABILITY_FILE}")


RELIABILITY_FILE = "reliability.png"


def _summary(report: ScorerReport) -> Table:
    from rich.table import Table

    table = Table("Held-out pairs", str(report.held_out_pairs), title="What the scorer is worth")
    if report.accuracy is None:
        table.add_row("Accuracy", "every held-out pair is a tie")
    else:
        table.add_row(
            "Accuracy", f"{report.accuracy:.1%}  (95 %: {report.accuracy_low:.1%} to {report.accuracy_high:.1%})"
        )
    table.add_row("Ties, left out of it", str(report.held_out_ties))
    table.add_row("Log loss", f"{report.log_loss:.3f} nats")
    table.add_row("Position bias", f"{report.position_bias:.3f} of the logit")
    table.add_row("Pairs that flip with the order", f"{report.flip_share:.1%}")
    table.add_row("Calibration error", f"{report.calibration_error:.3f}")
    table.add_row("Pairs that had to be cut", f"{report.truncated_share:.1%}")
    table.add_row(
        "Trained",
        f"{report.training_pairs} pairs, {report.steps} steps, {report.seconds:.0f} s, {report.parameters:,} parameters",
    )
    return table


def _calibration(report: ScorerReport) -> Table:
    from rich.table import Table

    table = Table("P(preferred is better)", "pairs", "predicted", "labelled", title="Calibration")
    for row in report.calibration:
        predicted, observed = ("-" if value is None else f"{value:.3f}" for value in (row.predicted, row.observed))
        table.add_row(f"{row.low:.2f} to {row.high:.2f}", str(row.pairs), predicted, observed)
    return table
