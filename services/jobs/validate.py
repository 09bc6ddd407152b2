"""Checks a whole job before anything starts (rule 15), and says what it comes to.

Used by the command line, the REST API, and as a job's first stage. Local files are read with json and `tokenizers`, without torch, so it
takes well under a second; what needs the hub, `datasets` or transformers waits for ``deep``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.errors import InputError
from learner.records import Prompt
from learner.references import resolve_reference
from learner.rendered import RenderedPrompt, refuse_difference_from_transformers
from services.jobs import model_checks, scorer_checks, spec_checks, trackers
from services.jobs.hub import fetch_small_files
from services.jobs.machine import Machine
from services.jobs.memory import MemoryEstimate, estimate_memory
from services.jobs.model_files import ModelFiles, read_model
from services.jobs.pairs import prepare_pairs, read_pairs
from services.jobs.paths import is_hub_name, is_prompt_file, resolve_paths
from services.jobs.prepare import (
    PreparedPrompts,
    context_tokens,
    held_out_share,
    prepare_evaluation_prompts,
    prepare_prompts,
)
from services.jobs.prompts import read_prompts
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec
from services.jobs.stream import refuse_too_few
from workers.config import FunctionScorer

COMPARED = 8
"""Prompts whose rendering is compared with transformers' own."""


@dataclass(frozen=True)
class PromptSummary:
    """What was read. ``longest_tokens`` is None where prompts could not be rendered yet; 0 prompts were not read yet."""

    prompts: int
    skipped: int = 0
    truncated: int = 0
    longest_tokens: int | None = None
    evaluation_prompts: int = 0
    evaluation_skipped: int = 0
    evaluation_truncated: int = 0
    domains: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class ValidatedJob:
    """A job that can start.

    Attributes:
        spec: with absolute paths, and every `auto` and default that depends on other keys made explicit.
        model: the policy's files; None for a hub model before a deep validation.
        prepared: the training prompts with their token ids; None where they were not rendered (or read) yet.
        evaluation: the held-out prompts likewise.
        uncompared: prompts whose rendering is still to be compared with transformers' own.
    """

    spec: JobSpec
    warnings: tuple[str, ...]
    memory: MemoryEstimate
    prompts: PromptSummary
    model: ModelFiles | None = None
    prepared: PreparedPrompts | None = None
    evaluation: PreparedPrompts | None = None
    uncompared: tuple[RenderedPrompt, ...] = ()


def validate_job(
    spec: JobSpec,
    base_dir: Path,
    *,
    deep: bool = False,
    compare_rendering: bool = True,
    allowed_roots: Sequence[Path] | None = None,
    machine: Machine | None = None,
) -> ValidatedJob:
    """Check a job, and resolve it.

    Args:
        base_dir: folder that relative paths are taken from: the job file's.
        deep: also fetch what is named on the hub, and compare the rendering with transformers' own.
        compare_rendering: false leaves that comparison, if it can be made at another time, to the learner's start: importing
            transformers takes seconds, and the learner does so anyway.
        allowed_roots: where files may lie; None: anywhere. Configured for jobs that come over REST (rule 16).
        machine: what the workers must fit on; None where a cluster runs them.

    Raises:
        InputError: one line for each problem, each beginning with the key's path.
    """
    _refuse(spec_checks.problems(spec))
    _refuse(trackers.problems(spec.output.trackers))
    if machine is not None:
        _refuse(spec_checks.machine_problems(spec, machine))
    spec = resolve_paths(spec, base_dir, allowed_roots)
    warnings = list(spec_checks.warnings(spec))

    model = _policy(spec, deep)
    if model is not None:
        _refuse(model_checks.problems(spec, model))
        warnings += model_checks.warnings(model)
    elif not deep:
        warnings.append(
            f"policy.model: {spec.policy.model} is taken for a name on the hub; it is checked with --deep, and when the job starts"
        )
    if spec.policy.adapter is not None:
        _refuse(model_checks.adapter_problems(Path(spec.policy.adapter), spec.adapters, model))
    scorer_bytes = _scorer(spec, deep, warnings) if spec.samples else None

    spec = _explicit(spec, model)
    summary, prepared, evaluation, uncompared = _prompts(spec, model, deep, compare_rendering, warnings)
    memory = estimate_memory(spec, model, scorer_bytes)
    if machine is not None and memory.total("main memory") > machine.memory_bytes:
        warnings.append(
            f"resources: the workers take about {memory.total('main memory') / 1e9:.1f} GB of main memory, and this machine has "
            f"{machine.memory_bytes / 1e9:.1f} GB"
        )
    return ValidatedJob(spec, tuple(warnings), memory, summary, model, prepared, evaluation, uncompared)


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise InputError("\n".join(found))


def _policy(spec: JobSpec, deep: bool) -> ModelFiles | None:
    if not is_hub_name(spec.policy.model):
        return read_model(Path(spec.policy.model))
    if not deep:
        return None
    return read_model(fetch_small_files(spec.policy.model, spec.policy.revision, "policy.model"))


def _scorer(spec: JobSpec, deep: bool, warnings: list[str]) -> int | None:
    """Check the scorer's model; the size of its weights, where they are here."""
    scorer = spec.scorer.model
    if isinstance(scorer, FunctionScorer):
        return 0
    local = not is_hub_name(scorer.model)
    if not local and not deep:
        warnings.append(
            f"scorer.model.model: {scorer.model} is taken for a name on the hub; it is checked with --deep, and when the job starts"
        )
        return None
    folder = Path(scorer.model) if local else fetch_small_files(scorer.model, None, scorer_checks.KEY)
    _refuse(scorer_checks.problems(folder, scorer, with_weights=local))
    files = list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    return sum(path.stat().st_size for path in files) or None


def _explicit(spec: JobSpec, model: ModelFiles | None) -> JobSpec:
    """The same job with everything said that was left to defaults depending on other keys."""
    resources = spec.resources
    slots = resources.sampler.lora_slots or spec.live_adapters
    sampler = resources.sampler.model_copy(
        update={
            "lora_slots": slots,
            "cpu_lora_slots": resources.sampler.cpu_lora_slots or 2 * slots,
            "chat_slots": spec.chat_slots,
        }
    )
    policy = spec.policy
    if model is not None:
        policy = policy.model_copy(update={"max_context_tokens": context_tokens(spec, model)})
    on_gpu = resources.learner.gpus > 0
    if policy.dtype == "auto" and (not spec.samples or (sampler.gpus > 0) == on_gpu):
        policy = policy.model_copy(update={"dtype": "bfloat16" if on_gpu else "float32"})
    objective = spec.objective.model_copy(update={"reference": resolve_reference(spec.objective, spec.schedule)})
    return spec.model_copy(
        update={
            "policy": policy,
            "objective": objective,
            "resources": resources.model_copy(update={"sampler": sampler}),
        }
    )


def _prompts(
    spec: JobSpec, model: ModelFiles | None, deep: bool, compare: bool, warnings: list[str]
) -> tuple[PromptSummary, PreparedPrompts | None, PreparedPrompts | None, tuple[RenderedPrompt, ...]]:
    """Read and render the prompts as far as can be done now, and check that rounds and evaluation have enough of them.

    The last of what it returns is still to be compared with transformers' rendering.
    """
    readable = [
        config is None or deep or is_prompt_file(config.source) for config in (spec.prompts, spec.evaluation.prompts)
    ]
    for config, key, here in zip(
        (spec.prompts, spec.evaluation.prompts), ("prompts", "evaluation.prompts"), readable, strict=True
    ):
        if config is not None and not here:
            warnings.append(
                f"{key}.source: {config.source} is taken for a name on the hub; it is read with --deep, and when the job starts"
            )
    if model is None or not _can_render(model, deep, warnings):
        training = _read(spec) if readable[0] else []
        held_out = _held_out(spec) if readable[1] else []
        if training:
            refuse_too_few([prompt.domain for prompt in training], spec.schedule)
        _refuse_overlap(training, held_out, warnings)
        return _summary(training, held_out), None, None, ()
    renderer = PromptRenderer(model.folder, allow_transformers=deep)
    _refuse(model_checks.tokenizer_problems(model, renderer))
    if renderer.writes_the_date:
        warnings.append(
            "policy.model: its chat template may write today's date into prompts, so that answers differ from day to day"
        )
    prepare = prepare_pairs if spec.offline else prepare_prompts
    prepared = prepare(spec, model, renderer=renderer) if readable[0] else None
    evaluation = prepare_evaluation_prompts(spec, model, renderer=renderer) if readable[1] else None
    if prepared is not None:
        refuse_too_few([prompt.domain for prompt in prepared.prompts], spec.schedule)
    if evaluation is not None:
        warnings.extend(_few_held_out(spec, evaluation.prompts))
    uncompared: tuple[RenderedPrompt, ...] = ()
    if deep and prepared is not None:
        uncompared = tuple(map(RenderedPrompt, prepared.prompts[:COMPARED], prepared.token_ids[:COMPARED]))
        if compare or renderer.writes_the_date:  # the date may have changed when a learner starts
            refuse_difference_from_transformers(str(model.folder), uncompared)
            uncompared = ()
    training = list(prepared.prompts) if prepared else []
    held_out = list(evaluation.prompts) if evaluation else []
    _refuse_overlap(training, held_out, warnings)
    return _summary(training, held_out, prepared, evaluation), prepared, evaluation, uncompared


def _read(spec: JobSpec) -> list[Prompt]:
    if not spec.offline:
        return read_prompts(spec.prompts)
    return [pair.prompt for pair in read_pairs(spec.prompts, chosen_may_lose=spec.objective.record == "given-pair")]


def _can_render(model: ModelFiles, deep: bool, warnings: list[str]) -> bool:
    if deep or (model.folder / "tokenizer.json").is_file():
        return True
    warnings.append(
        "policy.model: it has no tokenizer.json; its prompts are rendered with --deep, and when the job starts"
    )
    return False


def _held_out(spec: JobSpec) -> list[Prompt]:
    if spec.evaluation.prompts is None:
        return []
    prompts = read_prompts(spec.evaluation.prompts, key="evaluation.prompts")
    held_out_share(spec, [prompt.domain for prompt in prompts])
    return prompts


def _few_held_out(spec: JobSpec, used: Sequence[Prompt]) -> Iterator[str]:
    """What to warn of where there are fewer held-out prompts than ``evaluation.count``, or than a domain's share of it."""
    count, found = spec.evaluation.count, [prompt.domain for prompt in used]
    share = held_out_share(spec, found)
    if share is None:
        if len(used) < count:
            yield f"evaluation.count: {count} is more than the {len(used)} held-out prompts; all are used"
        return
    counts = Counter(found)
    few = [f"{domain} ({counts[domain]})" for domain in spec.schedule.domains or () if counts[domain] < share]
    if few:
        yield f"evaluation.count: {count} is {share} a domain, which is more than there are of {', '.join(few)}; all of those are used"


def _refuse_overlap(training: Sequence[Prompt], held_out: Sequence[Prompt], warnings: list[str]) -> None:
    """Held-out prompts must not be trained on: the same id and text is the same prompt; the same text alone may be a coincidence."""
    seen = {prompt.messages: prompt.id for prompt in training}
    ids = {(prompt.id, prompt.messages) for prompt in training}
    same = [prompt.id for prompt in held_out if (prompt.id, prompt.messages) in ids]
    if same:
        raise InputError(
            f"evaluation.prompts: {len(same)} of {len(held_out)} prompts are trained on too, the first is {same[0]!r}; "
            "hold them out of `prompts`"
        )
    alike = sum(prompt.messages in seen for prompt in held_out)
    if alike:
        warnings.append(
            f"evaluation.prompts: {alike} of {len(held_out)} have the text of a training prompt, under another id"
        )


def _summary(
    training: Sequence[Prompt],
    held_out: Sequence[Prompt],
    prepared: PreparedPrompts | None = None,
    evaluation: PreparedPrompts | None = None,
) -> PromptSummary:
    domains = Counter(prompt.domain for prompt in training if prompt.domain is not None)
    return PromptSummary(
        prompts=len(training),
        skipped=prepared.skipped if prepared else 0,
        truncated=prepared.truncated if prepared else 0,
        longest_tokens=prepared.longest if prepared else None,
        evaluation_prompts=len(held_out),
        evaluation_skipped=evaluation.skipped if evaluation else 0,
        evaluation_truncated=evaluation.truncated if evaluation else 0,
        domains=tuple(sorted(domains.items())),
    )
