"""What is compared: a model, an adapter on one, a job's version, or the answers in a file. Found and checked without torch (rule 15)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from learner.config import AdapterConfig, PolicyConfig
from learner.errors import InputError
from learner.records import ADAPTER_FILES, Prompt
from services.adapters import adapter_files
from services.evaluation.alpaca import GivenAnswers, is_answers_file, read_answers
from services.jobs.hub import fetch_small_files
from services.jobs.model_checks import adapter_problems
from services.jobs.model_files import ModelFiles, read_json, read_model, safetensors_shapes
from services.jobs.paths import is_hub_name
from services.jobs.records import JobRecord
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.settings import Settings
from workers.sampler.limits import SERVED_MODULES

BEST, NEWEST = "best", "newest"


@dataclass(frozen=True)
class AnswersSide:
    """A side whose answers are there."""

    name: str
    given: GivenAnswers


@dataclass(frozen=True)
class ModelSide:
    """A side that writes its answers: a base model, or an adapter on it.

    Attributes:
        name: what a person called it.
        policy: the base model.
        adapter: the adapter's two files; None for the base itself.
        rank: the adapter's.
        job_id: whose version it is.
    """

    name: str
    policy: PolicyConfig
    adapter: dict[str, bytes] | None = None
    rank: int = 0
    job_id: str | None = None


Side = AnswersSide | ModelSide


def find_side(name: str, *, base: str | None, field: str) -> Side:
    """The side that ``name`` means: an answers file, an adapter folder, a model's folder or hub name, or ``JOB@VERSION``.

    Args:
        name: as a person wrote it.
        base: the model of an adapter folder; default: the one that its configuration names.
        field: the argument's name, for errors.

    Raises:
        InputError: there is nothing of that name, or it cannot be served.
    """
    path = Path(name).expanduser()
    if path.is_file() or is_answers_file(name):
        return AnswersSide(name, read_answers(path))
    if (path / "adapter_config.json").is_file():
        return _adapter_side(name, path, base, field)
    if path.is_dir():
        return ModelSide(name, PolicyConfig(model=str(path.resolve())))
    job_id, at, version = name.rpartition("@")
    if at and job_id:
        return _job_side(name, job_id, version, field)
    if is_hub_name(name):
        return ModelSide(name, PolicyConfig(model=name))
    raise InputError(
        f"{field}: {name} is neither a file of answers, an adapter's or a model's folder, JOB@VERSION, nor a name on the Hugging Face hub "
        "(organisation/name)"
    )


def on_one_engine(sides: Mapping[str, Side]) -> dict[str, Side]:
    """The same sides; those on the model of a job's version take the job's settings of it (type, context), so that one engine serves both."""
    settings = {
        (side.policy.model, side.policy.revision): side.policy
        for side in sides.values()
        if isinstance(side, ModelSide) and side.job_id is not None
    }
    result = dict(sides)
    for role, side in sides.items():
        if isinstance(side, ModelSide) and side.job_id is None:
            policy = settings.get((side.policy.model, side.policy.revision), side.policy)
            result[role] = replace(side, policy=policy)
    return result


def find_job(job_id: str) -> JobRecord:
    """A job of the store on this machine.

    Raises:
        InputError: there is no such job.
    """
    return JobStore(Settings.load().store_url).get(job_id)


def model_files(policy: PolicyConfig, field: str) -> ModelFiles:
    """A model's small files, from its folder or the hub.

    Raises:
        InputError: it is not a model, or cannot be fetched.
    """
    folder = Path(policy.model)
    if not folder.is_dir():
        folder = fetch_small_files(policy.model, policy.revision, field)
    return read_model(folder, field)


def rendered(side: ModelSide, prompts: list[Prompt], max_tokens: int, field: str) -> list[tuple[int, ...]]:
    """Each prompt's token ids for a side, rendered once (rule 2).

    Raises:
        InputError: a prompt leaves no room for the longest answer, or the model's chat template refuses it.
    """
    model = model_files(side.policy, field)
    ids = PromptRenderer(model.folder, field, allow_transformers=True).token_ids(prompts)
    limits = [limit for limit in (side.policy.max_context_tokens, model.context_tokens) if limit is not None]
    if limits:
        room = min(limits) - max_tokens
        long = [(prompt.id, len(each)) for prompt, each in zip(prompts, ids, strict=True) if len(each) > room]
        if long:
            raise InputError(
                f"--max-tokens: {max_tokens} of a context of {min(limits)} leaves {max(room, 0)} tokens for a prompt, and {len(long)} of "
                f"{len(prompts)} are longer, the first is {long[0][0]!r} with {long[0][1]}; lower --max-tokens, or shorten the prompts"
            )
    return ids


def _adapter_side(name: str, folder: Path, base: str | None, field: str) -> ModelSide:
    config = read_json(folder / "adapter_config.json", field)
    base = base or config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{field}: {folder} does not say which model it belongs to; name it with --base")
    if not Path(base).expanduser().is_dir() and not is_hub_name(base):
        raise InputError(
            f"--base: {base}, the model of {folder}, is neither a folder nor a name on the Hugging Face hub"
        )
    local = Path(base).expanduser()
    policy = PolicyConfig(model=str(local.resolve()) if local.is_dir() else base)
    targets = _adapted_layers(folder, field)
    if unserved := sorted(targets - SERVED_MODULES):
        raise InputError(
            f"{field}: {folder} adapts {unserved[0]}, which samplers cannot serve; they serve {', '.join(sorted(SERVED_MODULES))}"
        )
    try:
        # what the adapter says of itself, so that only what cannot be served is left to complain about
        adapters = AdapterConfig.model_validate(
            {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "target_modules": sorted(targets)}
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(
            f"{field}: {folder}/adapter_config.json: {wrong['loc'][0]} {wrong['input']!r} cannot be: {wrong['msg']}"
        ) from None
    problems = list(adapter_problems(folder, adapters, model_files(policy, "--base")))
    if problems:
        raise InputError("\n".join(f"{field}: {problem.removeprefix('policy.adapter: ')}" for problem in problems))
    return ModelSide(name, policy, {file: (folder / file).read_bytes() for file in ADAPTER_FILES}, adapters.rank)


def _adapted_layers(folder: Path, field: str) -> set[str]:
    """The last parts of the names of the layers that an adapter's weights are for."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"{field}: {folder} has no adapter_model.safetensors; save the adapter with peft's save_pretrained"
        )
    layers = (name.partition(".lora_")[0] for name in safetensors_shapes(weights, field) if ".lora_" in name)
    return {layer.rsplit(".", 1)[-1] for layer in layers}


def _job_side(name: str, job_id: str, version: str, field: str) -> ModelSide:
    job = find_job(job_id)
    named = {BEST: job.best_version, NEWEST: job.current_version}
    number = named.get(version, int(version) if version.isdecimal() else None)
    if number is None:
        what = f"{job_id} has no {version} version yet" if version in (BEST, NEWEST) else f"{version!r} is no version"
        raise InputError(f"{field}: {what}; write {job_id}@NUMBER, {job_id}@{BEST} or {job_id}@{NEWEST}")
    files = adapter_files(job, number)
    rank = int(json.loads(files["adapter_config.json"])["r"])
    return ModelSide(name, JobSpec.model_validate(job.spec).policy, files, rank, job_id)
