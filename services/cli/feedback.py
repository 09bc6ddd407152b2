"""``sparring feedback``: people's preferences for a job that runs, and what became of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from learner.errors import InputError
from services.cli.jobs import JobArgument, JsonOption
from services.cli.source import Jobs, UrlOption, open_jobs
from services.settings import Settings

if TYPE_CHECKING:
    from services.jobs.records import FeedbackCounts, Preference

BATCH_BYTES = 512 * 1024
"""Preferences that are sent at a time: well below what a service takes in one request."""

_PLACE = re.compile(r"^preferences\[(\d+)\]", re.MULTILINE)


def feedback(
    job_id: JobArgument,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help='Preferences as JSON Lines: {"prompt": …, "chosen": …, "rejected": …} and, if you like, id, domain and rater.',
            show_default=False,
        ),
    ] = None,
    url: UrlOption = None,
    json_: JsonOption = False,
) -> None:
    """Send preferences of people to a job that runs, or without a file show what became of those it has."""
    jobs = open_jobs(url, Settings.load())
    if file is not None:
        stored, known = _send(jobs, job_id, file)
        typer.echo(f"{job_id} has {stored} new preferences; {known} were there already.", err=json_)
    counts = jobs.feedback(job_id)
    typer.echo(counts.model_dump_json(indent=2) if json_ else _told(counts))


def _send(jobs: Jobs, job_id: str, file: Path) -> tuple[int, int]:
    """Send a file's preferences in batches. Returns how many were stored, and how many were known."""
    from services.jobs.feedback import read_preferences

    stored = known = 0
    for batch in _batches(read_preferences(file)):
        try:
            receipt = jobs.send_preferences(job_id, [preference for _, preference in batch])
        except InputError as error:
            before = stored + known
            rest = f"\nThe {before} before them are stored; send the whole file again." if before else ""
            raise InputError(_named(str(error), batch) + rest) from None
        stored, known = stored + receipt.stored, known + receipt.known
    return stored, known


def _named(complaints: str, batch: Sequence[tuple[str, Preference]]) -> str:
    """Complaints about places in a batch, as complaints about lines of the file."""
    return _PLACE.sub(lambda found: batch[int(found[1])][0], complaints)


def _batches(preferences: Sequence[tuple[str, Preference]]) -> Iterator[list[tuple[str, Preference]]]:
    batch: list[tuple[str, Preference]] = []
    size = 0
    for where, preference in preferences:
        grown = size + len(preference.model_dump_json().encode())
        if batch and grown > BATCH_BYTES:
            yield batch
            batch, grown = [], grown - size
        batch.append((where, preference))
        size = grown
    yield batch


def _told(counts: FeedbackCounts) -> str:
    """The account in words, parts that are 0 left out."""
    parts = {"waiting": counts.waiting, "admitted": counts.admitted, "learned from": counts.consumed}
    parts |= {f"skipped ({reason})": count for reason, count in counts.skipped.items()}
    parts |= {f"failed ({stage})": count for stage, count in counts.failed.items()}
    parts |= {"refused": counts.refused}
    told = " + ".join(f"{count} {name}" for name, count in parts.items() if count)
    refusals = "".join(f"\nrefused {refusal.id}: {refusal.reason}" for refusal in counts.refusals)
    return f"{counts.received} received = {told or '0'}{refusals}"
