"""From prompts to what samplers get: rendered, checked against the context, and in the order that rounds take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.errors import InputError
from learner.records import Message, Prompt
from learner.seeds import derive_seed
from services.jobs.model_files import ModelFiles
from services.jobs.prompts import read_prompts
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec, PromptsConfig
from services.jobs.stream import shuffled


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts in their file's order with their token ids, and how many were left out or cut because they were too long."""

    prompts: tuple[Prompt, ...]
    token_ids: tuple[tuple[int, ...], ...]
    skipped: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.token_ids), default=0)

    def first(self, count: int) -> PreparedPrompts:
        """The first ``count`` of them; the counts of what was left out stay."""
        return PreparedPrompts(self.prompts[:count], self.token_ids[:count], self.skipped, self.truncated)

    def select(self, places: Sequence[int]) -> PreparedPrompts:
        """Those at ``places``, in that order; the counts of what was left out stay."""
        return PreparedPrompts(
            tuple(self.prompts[place] for place in places),
            tuple(self.token_ids[place] for place in places),
            self.skipped,
            self.truncated,
        )


def context_tokens(spec: JobSpec, model: ModelFiles) -> int | None:
    """Tokens that prompt and answer may have together: the job's limit or the model's, whichever is smaller."""
    limits = [limit for limit in (spec.policy.max_context_tokens, model.context_tokens) if limit is not None]
    return min(limits) if limits else None


def prompt_tokens(spec: JobSpec, model: ModelFiles) -> int | None:
    """Tokens that a prompt may have, so that the longest answer still fits.

    Raises:
        InputError: answers leave no room at all.
    """
    context = context_tokens(spec, model)
    if context is None:
        return None
    if spec.sampling.max_tokens >= context - 1:
        raise InputError(
            f"sampling.max_tokens: {spec.sampling.max_tokens} leaves no room for a prompt in a context of {context} tokens; lower it"
            + ("" if context == model.context_tokens else " or raise policy.max_context_tokens")
        )
    # one token stays free: the engine measures prompt and answer together only where one more fits
    return context - spec.sampling.max_tokens - 1


def prepare_prompts(
    spec: JobSpec, model: ModelFiles, base_dir: Path | None = None, renderer: PromptRenderer | None = None
) -> PreparedPrompts:
    """The training prompts, ready for `PromptStream`.

    Raises:
        InputError: as `read_prompts` and `render_prompts` say.
    """
    return render_prompts(read_prompts(spec.prompts, base_dir), spec.prompts, spec, model, renderer=renderer)


def prepare_evaluation_prompts(
    spec: JobSpec, model: ModelFiles, base_dir: Path | None = None, renderer: PromptRenderer | None = None
) -> PreparedPrompts | None:
    """The held-out prompts, at most ``evaluation.count`` of them; ``None`` where the job has none.

    With ``schedule.domains`` they are drawn from the listed domains, in shares as equal as the source allows.

    Raises:
        InputError: as `read_prompts`, `render_prompts` and `held_out_share` say.
    """
    config = spec.evaluation.prompts
    if config is None:
        return None
    key = "evaluation.prompts"
    prepared = render_prompts(read_prompts(config, base_dir, key=key), config, spec, model, key, renderer)
    if config.shuffle:
        order = shuffled([prompt.id for prompt in prepared.prompts], derive_seed(spec.seed, "evaluation prompts"))
        prepared = prepared.select(order)
    share = held_out_share(spec, [prompt.domain for prompt in prepared.prompts])
    if share is None:
        return prepared.first(spec.evaluation.count)
    taken: Counter[str | None] = Counter()
    chosen = []
    for place, prompt in enumerate(prepared.prompts):
        if prompt.domain in (spec.schedule.domains or ()) and taken[prompt.domain] < share:
            taken[prompt.domain] += 1
            chosen.append(place)
    return prepared.select(chosen)


def held_out_share(spec: JobSpec, found: Iterable[str | None]) -> int | None:
    """How many held-out prompts each of ``schedule.domains`` gives at most: an equal share of ``evaluation.count``, rounded down.

    Args:
        spec: the job, which has held-out prompts.
        found: the domain of every held-out prompt; None for one that carries none.

    Returns:
        None where the job lists no domains.

    Raises:
        InputError: a listed domain has no held-out prompt, or ``evaluation.count`` is less than one for each.
    """
    listed, config = spec.schedule.domains, spec.evaluation.prompts
    if listed is None or config is None:
        return None
    if spec.evaluation.count < len(listed):
        raise InputError(
            f"evaluation.count: {spec.evaluation.count} is not enough for {len(listed)} domains; raise it to {len(listed)} or more"
        )
    counts = Counter(found)
    missing = [domain for domain in listed if not counts[domain]]
    if missing:
        others = ", ".join(f"{domain} ({count})" for domain, count in sorted(counts.items(), key=str) if domain)
        raise InputError(
            f"evaluation.prompts: {config.source} holds no prompt of the domain {missing[0]!r} that schedule.domains lists "
            f"(field {config.domain_column!r}; found: {others or 'none with a domain'}); add held-out prompts of it, name the field "
            "with evaluation.prompts.domain_column, or take it out of schedule.domains"
        )
    return spec.evaluation.count // len(listed)


def render_prompts(
    prompts: Sequence[Prompt],
    config: PromptsConfig,
    spec: JobSpec,
    model: ModelFiles,
    key: str = "prompts",
    renderer: PromptRenderer | None = None,
) -> PreparedPrompts:
    """Render prompts once (rule 2) and treat those that are too long as ``too_long`` says.

    Raises:
        InputError: a prompt is too long and ``too_long: error``; one cannot be cut short enough; none is left.
    """
    limit = prompt_tokens(spec, model)
    renderer = renderer or PromptRenderer(model.folder)
    rendered = renderer.token_ids(prompts)
    if limit is None or all(len(ids) <= limit for ids in rendered):
        return PreparedPrompts(tuple(prompts), tuple(rendered))
    room = f"the {limit} that sampling.max_tokens: {spec.sampling.max_tokens} leaves of the context"
    kept: list[Prompt] = []
    kept_ids: list[tuple[int, ...]] = []
    skipped = truncated = 0
    for prompt, ids in zip(prompts, rendered, strict=True):
        if len(ids) > limit:
            if config.too_long == "error":
                count = sum(len(other) > limit for other in rendered)
                raise InputError(
                    f"{key}: {count} of {len(prompts)} prompts are longer than {room}, the first is {prompt.id!r} with {len(ids)} "
                    f"tokens; set {key}.too_long to skip or truncate, or lower sampling.max_tokens"
                )
            if config.too_long == "skip":
                skipped += 1
                continue
            prompt, ids = cut_start(prompt, ids, limit, renderer, key)
            truncated += 1
        kept.append(prompt)
        kept_ids.append(ids)
    if not kept:
        raise InputError(
            f"{key}: all {len(prompts)} prompts are longer than {room}, so none is left; lower sampling.max_tokens"
        )
    return PreparedPrompts(tuple(kept), tuple(kept_ids), skipped, truncated)


def cut_start(
    prompt: Prompt,
    ids: tuple[int, ...],
    limit: int,
    renderer: PromptRenderer,
    key: str = "prompts",
    remedy: str = "lower sampling.max_tokens",
) -> tuple[Prompt, tuple[int, ...]]:
    """Cut the start of the last user's text until the prompt has at most ``limit`` tokens; the template stays whole.

    Raises:
        InputError: the template and the other turns are too long by themselves.
    """
    text = prompt.messages[-1].text
    starts = renderer.text_offsets(text)
    dropped = 0
    while len(ids) > limit:
        dropped += len(ids) - limit
        if dropped >= len(starts) or not text[starts[dropped] :].strip():
            raise InputError(
                f"{key}: prompt {prompt.id!r} cannot be cut to {limit} tokens, because its other turns and the chat template fill them; "
                f"set {key}.too_long: skip, or {remedy}"
            )
        rest = Message.of("user", text[starts[dropped] :])
        shorter = prompt.model_copy(update={"messages": (*prompt.messages[:-1], rest)})
        (ids,) = renderer.token_ids([shorter])
        prompt = shorter
    return prompt, ids
