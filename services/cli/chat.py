"""``sparring chat`` and ``sparring compare``: talk with a job's policy, and see two of its versions side by side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from learner.errors import InputError
from services.cli.jobs import JobArgument, JsonOption
from services.cli.source import ServiceUrlOption, open_service
from services.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from services.chat.client import ChatClient
    from services.chat.compare import ComparisonResult

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="JOB, JOB@VERSION, JOB:slow, JOB:slow@VERSION or JOB:base.", show_default=False
    ),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System prompt. Default: the job's.", show_default=False)
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, max=2, help="0: the likeliest answer. Default: the job's.", show_default=False)
]
TokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Longest answer. Default: the job's.", show_default=False)
]

LEAVE = ("/exit", "/quit")
FORGET = "/new"


def chat(
    model: ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Ask only this, and print the answer. -: from stdin.", show_default=False),
    ] = None,
    system: SystemOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = None,
    seed: Annotated[int | None, typer.Option(help="Draws the same answer again.", show_default=False)] = None,
    url: ServiceUrlOption = None,
) -> None:
    """Chat with a job's policy, while it trains or afterwards."""
    from rich.console import Console

    client = _client(url)
    wish: dict[str, float | None] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    before = [] if system is None else [{"role": "system", "content": system}]
    if prompt is not None:
        question = sys.stdin.read() if prompt == "-" else prompt
        for piece in client.ask(model, [*before, {"role": "user", "content": question}], **wish):
            typer.echo(piece, nl=False)
        typer.echo()
        return
    _talk(client, model, before, wish, Console())


def compare(
    job_id: JobArgument,
    first: Annotated[str, typer.Argument(help="A version's number, slow, slow@VERSION or base.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another, likewise.", show_default=False)],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What both answer.", show_default=False)],
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of both answers.")] = 0,
    url: ServiceUrlOption = None,
    json_: JsonOption = False,
) -> None:
    """Have two of a job's policies answer one prompt, and its scorer say which answer is better."""
    from rich.console import Console

    client = _client(url)
    found = client.compare(job_id, (first, second), prompt, temperature=temperature, max_tokens=max_tokens, seed=seed)
    if json_:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found, Console())


def _client(url: str | None) -> ChatClient:
    from services.chat.client import ChatClient

    settings = Settings.load()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return ChatClient(open_service(url, settings).client.url, api_key=key)


def _talk(
    client: ChatClient, model: str, before: list[dict[str, str]], wish: dict[str, float | None], console: Console
) -> None:
    """Turn after turn, until the person leaves."""
    console.print(f"[dim]{model} listens. {FORGET} begins anew, {LEAVE[0]} or Ctrl-D ends it.[/]", highlight=False)
    turns = list(before)
    while True:
        try:
            question = console.input("[bold]you[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if question in LEAVE:
            return
        if question == FORGET:
            turns = list(before)
            console.print("[dim]Forgotten.[/]")
            continue
        if not question:
            continue
        asked = [*turns, {"role": "user", "content": question}]
        answer = _told(client, model, asked, wish, console)
        if answer is not None:
            turns = [*asked, {"role": "assistant", "content": answer}]


def _told(
    client: ChatClient,
    model: str,
    turns: list[dict[str, str]],
    wish: dict[str, float | None],
    console: Console,
) -> str | None:
    """Print the answer as it comes. None where there is none that a next turn could follow: it broke off, or is empty."""
    answer = ""
    console.print(f"[bold cyan]{model}[/] ", end="", highlight=False)
    try:
        for piece in client.ask(model, turns, **wish):
            answer += piece
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [dim](broken off)[/]")
        return None
    except InputError as error:
        console.print()
        console.print(f"[red]{error}[/]", soft_wrap=True, highlight=False)
        return None
    console.print()
    return answer or None


def _show(found: ComparisonResult, console: Console) -> None:
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    verdict = found.verdict
    chances = (verdict.win_probability, 1 - verdict.win_probability)
    panels = [
        Panel(
            Text(answer.text or "(nothing)"),
            title=f"{answer.model} · {chance:.0%}",
            subtitle=f"{answer.tokens} tokens, {answer.finish_reason}",
            border_style="green" if chance > 0.5 else "dim",
            width=max(20, console.width // 2 - 1),
        )
        for answer, chance in zip(found.answers, chances, strict=True)
    ]
    console.print(Columns(panels))
    shown = verdict.ordered_logits
    winner = {"first": found.answers[0].model, "second": found.answers[1].model, "tie": "neither"}[verdict.winner]
    console.print(
        f"{verdict.scorer.kind}: {winner} wins. Logit {verdict.logit:+.3f}: first shown first {shown[0][1]:+.3f}, "
        f"second shown first {shown[1][0]:+.3f}.",
        highlight=False,
        soft_wrap=True,
    )
