"""``sparring export``: what a job made, in forms that other tools read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from learner.errors import InputError
from learner.records import Module
from services.settings import Settings

if TYPE_CHECKING:
    from services.jobs.records import JobRecord

PAGE = 500


def export(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="One version as a peft folder.", show_default=False)
    ] = None,
    merged: Annotated[
        Path | None,
        typer.Option("--merged", metavar="DIR", help="The model with one version merged in.", show_default=False),
    ] = None,
    preferences: Annotated[
        Path | None,
        typer.Option(
            "--preferences",
            metavar="FILE",
            help="What was learned from, as Parquet with prompt, chosen and rejected.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=(1 << 31) - 1,
            help="Which version; of preferences, those it wrote. Default: the best, else the newest; of preferences, all.",
            show_default=False,
        ),
    ] = None,
    module: Annotated[
        Module, typer.Option(help="Which adapter, where the job has a fast and a slow one.", show_default=True)
    ] = "fast",
    messages: Annotated[
        bool, typer.Option("--messages", help="Preferences as lists of chat messages instead of plain text.")
    ] = False,
) -> None:
    """Write a job's adapter, its merged model, or its preference data. Runs where the job's files are."""
    from services.adapters import chosen_version
    from services.jobs.files import writing
    from services.jobs.store import JobStore

    if adapter is None and merged is None and preferences is None:
        raise InputError("nothing to export; name --adapter DIR, --merged DIR or --preferences FILE.parquet")
    store = JobStore(Settings.load().store_url)
    job = store.get(job_id)
    for folder in (adapter, merged):
        _check_new(folder)
    if adapter is not None:
        wanted = chosen_version(job, version)
        write_adapter(job, wanted, adapter, module)
        typer.echo(f"{adapter}: version {wanted} of {job_id}, a peft folder")
    if merged is not None:
        wanted = chosen_version(job, version)
        write_merged(job, wanted, merged, module)
        typer.echo(f"{merged}: the model with version {wanted} of {job_id} merged in")
    if preferences is not None:
        with writing(f"--preferences: {preferences}"):
            count = write_preferences(job, preferences, version=version, messages=messages)
        typer.echo(f"{preferences}: {count} pairs")


def write_adapter(job: JobRecord, version: int, folder: Path, module: Module = "fast") -> None:
    """Copy one version's adapter into a folder that peft and vLLM load.

    Raises:
        UnknownVersion: it is not on disk.
        InputError: the folder cannot be written.
    """
    from services.adapters import adapter_files
    from services.jobs.files import writing

    files = adapter_files(job, version, module)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)


def write_merged(job: JobRecord, version: int, folder: Path, module: Module = "fast") -> None:
    """Merge one version into its base model and write both model and tokenizer in the transformers format.

    Raises:
        UnknownVersion: it is not on disk.
        InputError: the folder cannot be written.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from services.jobs.files import writing
    from services.jobs.spec import JobSpec

    policy = JobSpec.model_validate(job.spec).policy
    with tempfile.TemporaryDirectory() as place:
        write_adapter(job, version, Path(place), module)
        with writing(folder):  # before the model is loaded
            folder.mkdir(parents=True, exist_ok=True)
        base = AutoModelForCausalLM.from_pretrained(policy.model, revision=policy.revision, dtype=policy.dtype)
        model = PeftModel.from_pretrained(base, place).merge_and_unload()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy.model, revision=policy.revision).save_pretrained(folder)


def write_preferences(job: JobRecord, path: Path, *, version: int | None = None, messages: bool = False) -> int:
    """Write the pairs that were learned from, in order of round and index, as Parquet. Returns how many.

    Columns: ``prompt``, ``chosen``, ``rejected`` as text, or all three as lists of chat messages; ``chosen_score`` and
    ``rejected_score`` are win probabilities against all answers of the group; ``prompt_id``, ``round`` and ``version``
    (which wrote the answers) say where a pair comes from.

    Raises:
        InputError: nothing was learned from, or kept; or a prompt has several turns and plain text was asked for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    talk = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    said = talk if messages else pa.string()
    schema = pa.schema(
        {
            "prompt": said,
            "chosen": said,
            "rejected": said,
            "chosen_score": pa.float64(),
            "rejected_score": pa.float64(),
            "prompt_id": pa.string(),
            "round": pa.int64(),
            "version": pa.int64(),
        }
    )
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with pq.ParquetWriter(part, schema) as writer:
            for page in _pairs(job, version, messages):
                writer.write_table(pa.Table.from_pylist(page, schema=schema))
                count += len(page)
        if count == 0:
            raise InputError(
                f"{job.id} has no groups to export: nothing was learned from, or output.keep_samples is false"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _pairs(job: JobRecord, version: int | None, messages: bool) -> Iterator[list[Mapping[str, Any]]]:
    from learner.pairing import select_answers
    from learner.records import GroupState
    from services.jobs.layout import JobPaths
    from services.jobs.spec import JobSpec
    from workers.replay.view import LedgerView

    spec = JobSpec.model_validate(job.spec)
    pairing = spec.pairing.model_copy(update={"rule": "auto"})  # the best and the worst, whatever was learned from
    view = LedgerView(JobPaths(Path(job.home), job.id).replay_database)
    after: tuple[int, int] | None = None
    try:
        while rows := view.groups(state=GroupState.CONSUMED, version=version, limit=PAGE, after=after):
            after = (rows[-1].round, rows[-1].index)
            page: list[Mapping[str, Any]] = []
            for group in (row.group for row in rows if row.group is not None):
                chosen = select_answers(
                    group, spec.objective, pairing, spec.sampling.truncated, spec.scorer.temperature
                )
                # by what the scorer said, whatever order the objective takes them in
                worst, *_, best = sorted(range(len(chosen.indices)), key=lambda place: chosen.win_probabilities[place])
                if messages:
                    prompt: Any = [{"role": turn.role, "content": turn.text} for turn in group.prompt.messages]
                elif len(group.prompt.messages) == 1:
                    prompt = group.prompt.messages[0].text
                else:
                    raise InputError(
                        f"prompt {group.prompt.id} has {len(group.prompt.messages)} messages, which plain text cannot say; "
                        "add --messages"
                    )
                page.append(
                    {
                        "prompt": prompt,
                        "chosen": _said(group.answers[chosen.indices[best]].text, messages),
                        "rejected": _said(group.answers[chosen.indices[worst]].text, messages),
                        "chosen_score": float(chosen.win_probabilities[best]),
                        "rejected_score": float(chosen.win_probabilities[worst]),
                        "prompt_id": group.prompt.id,
                        "round": group.round,
                        "version": group.version,
                    }
                )
            if page:
                yield page
    finally:
        view.close()


def _said(text: str, messages: bool) -> Any:
    return [{"role": "assistant", "content": text}] if messages else text


def _check_new(folder: Path | None) -> None:
    from services.jobs.files import writing

    with writing(folder):
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there already and not empty; name another folder")
