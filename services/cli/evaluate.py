"""``sparring evaluate``: two models, adapters, versions or files of answers against each other on the same prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from learner.errors import InputError
from services.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from services.evaluation.compare import Outcome, Player
    from services.evaluation.url_judge import UrlJudge

SIDE = (
    "an answers file (AlpacaEval's model_outputs.json), an adapter's or a model's folder, a hub model, or JOB@VERSION"
)


def evaluate(
    candidate: Annotated[str, typer.Argument(help=f"Whose win rate it is: {SIDE}.", show_default=False)],
    baseline: Annotated[str, typer.Argument(help="Against whom, likewise.", show_default=False)],
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts as in a job (.jsonl, .csv, .parquet, a hub dataset), or a .json list with `instruction`. Default: an answers file's.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many prompts.", show_default=False)
    ] = None,
    column: Annotated[str, typer.Option(help="Field of the prompt.")] = "prompt",
    split: Annotated[str, typer.Option(help="Split of a hub dataset.")] = "train",
    base: Annotated[
        str | None,
        typer.Option(help="Model of an adapter's folder. Default: what its configuration names.", show_default=False),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="scorer:JOB (its training scorer), gold:JOB, pairrm:MODEL, reward-model:MODEL or function:NAME. "
            "Default: the training scorer of a side's job.",
            show_default=False,
        ),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            help="Judge behind an OpenAI-compatible URL, as http://localhost:8000/v1; its key from SPARRING_JUDGE_API_KEY.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Which of its models.", show_default=False)] = None,
    judge_max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of that judge.")] = 1024,
    judge_concurrency: Annotated[int, typer.Option(min=1, help="Requests to it at a time.")] = 8,
    judge_timeout: Annotated[float, typer.Option(min=1, help="Longest wait for one reply, in seconds.")] = 120.0,
    tie_margin: Annotated[
        float, typer.Option(min=0, max=0.499, help="|P - 1/2| up to which a comparison is a tie.")
    ] = 0.0,
    best_of: Annotated[
        int,
        typer.Option(min=1, max=64, help="The candidate writes so many answers to each prompt; PairRM keeps the best."),
    ] = 1,
    baseline_best_of: Annotated[int, typer.Option(min=1, max=64, help="The baseline likewise.")] = 1,
    best_of_scorer: Annotated[
        str | None,
        typer.Option(
            help="The PairRM that picks. Default: the judge, where it is one, else the published one.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="1 samples the model itself; 0 takes the likeliest.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0.001, max=1, help="Total probability of the tokens that may be drawn.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs of vLLM; 0: the CPU. Default: 1 where there is one.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU. Default: all.", show_default=False)
    ] = None,
    kv_cache_gib: Annotated[float, typer.Option(min=0.01, help="vLLM's key-value cache on a CPU, in GiB.")] = 1.0,
    max_running_requests: Annotated[int, typer.Option(min=1, help="Answers that vLLM works on at a time.")] = 256,
    start_timeout: Annotated[float, typer.Option(min=1, help="Longest wait for vLLM to start, in seconds.")] = 600.0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="New folder for both sides' model_outputs.json and the result.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Compare two sides on the same prompts: win rate with interval, ties, length-controlled win rate, lengths."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from learner.records import SamplingParameters
    from services.evaluation.evaluate import Contender, Request
    from services.evaluation.evaluate import evaluate as carry_out
    from services.evaluation.sampling import EngineSettings
    from services.jobs.machine import Machine

    request = Request(
        candidate=Contender("candidate", candidate, best_of),
        baseline=Contender("baseline", baseline, baseline_best_of),
        base=base,
        prompts=prompts,
        count=count,
        column=column,
        split=split,
        judge=_judge(judge, judge_url, judge_model, judge_max_tokens, judge_concurrency, judge_timeout),
        tie_margin=tie_margin,
        best_of_scorer=best_of_scorer,
        sampling=SamplingParameters(temperature=temperature, top_p=top_p, top_k=0, max_tokens=max_tokens),
        seed=seed,
        engine=EngineSettings(
            gpus=min(1, Machine.here().gpus) if gpus is None else gpus,
            threads=threads or os.cpu_count() or 1,
            kv_cache_gib=kv_cache_gib,
            max_running_requests=max_running_requests,
            start_timeout_seconds=start_timeout,
            cache_dir=Settings.load().home / "cache",
        ),
        out=out,
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        outcome = carry_out(request, _Bars(bars).show)
    if as_json:
        typer.echo(json.dumps(outcome.as_data(), indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(_table(outcome))
    if out is not None:
        console.print(f"Answers and result: {out}", soft_wrap=True, markup=False)


def _judge(
    name: str | None, url: str | None, model: str | None, max_tokens: int, concurrency: int, timeout_seconds: float
) -> str | UrlJudge | None:
    from services.evaluation.url_judge import UrlJudge

    if url is None and model is None:
        return name
    if name is not None:
        raise InputError("--judge and --judge-url both name a judge; give one of them")
    if url is None or model is None:
        raise InputError("--judge-url and --judge-model go together; give both, or --judge")
    return UrlJudge(url, model, max_tokens, concurrency, timeout_seconds)


class _Bars:
    """One bar for each thing that is done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)


def _table(outcome: Outcome) -> Table:
    from rich.markup import escape
    from rich.table import Table

    rate, equal = outcome.win_rate, outcome.length_controlled
    table = Table("", "", title="Candidate against baseline (95 % intervals)", show_header=False, title_justify="left")
    rows = [
        ("candidate", _described(outcome.candidate)),
        ("baseline", _described(outcome.baseline)),
        ("judge", f"{outcome.judge.name} ({outcome.judge.kind}, {outcome.judge.version[:40]})"),
        ("prompts compared", f"{rate.count} of {len(outcome.prompts)}"),
        ("win rate, ties one half", f"{rate.mean:.1%} [{rate.low:.1%}, {rate.high:.1%}]"),
        ("length-controlled win rate", f"{equal.mean:.1%} [{equal.low:.1%}, {equal.high:.1%}]"),
        ("mean preference", f"{outcome.mean_preference:.1%}"),
        ("ties", f"{rate.ties:.1%}"),
        *((name.replace("_", " "), str(count)) for name, count in outcome.notes.items()),
    ]
    for name, text in rows:
        table.add_row(escape(name), escape(text))
    return table


def _described(player: Player) -> str:
    parts = [f"mean length {player.mean_characters:.0f} characters"]
    if player.best_of is not None and player.best_of > 1:
        parts.insert(0, f"best of {player.best_of}")
    if player.truncated_share is not None:
        parts.append(f"{player.truncated_share:.1%} cut off")
    return f"{player.name}: {', '.join(parts)}"
