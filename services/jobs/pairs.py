"""Preference pairs of a file, for offline jobs: read, rendered, checked against the context (rules 1 and 2).

A row is a prompt like any other, with a better and a worse answer. A bad row is reported by file and line.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from learner.errors import InputError
from learner.preference import CERTAIN_LOGIT
from learner.records import Message, Prompt, ScorerIdentity
from services.jobs.files import reading
from services.jobs.model_checks import answer_end, eos_token_ids
from services.jobs.model_files import ModelFiles
from services.jobs.paths import is_prompt_file
from services.jobs.prepare import PreparedPrompts, context_tokens, cut_start
from services.jobs.prompts import chat_turns, prompt_turns, read_rows, short
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec, PromptsConfig

CHUNK = 256
"""Pairs that are encoded at a time: encodings take much more memory than their ids."""

AnswerIds: TypeAlias = "tuple[array[int], array[int]]"
"""Token ids of a better and a worse answer."""


@dataclass(frozen=True)
class GivenPair:
    """One row: a prompt with its better and its worse answer. ``logit``: that the better one beats the other; ``where``: file and line.

    For an objective that learns from pairs in the order of the file (nash-md) these are the policy's own answer and its opponent's, and
    the logit is below 0 where the policy's own loses.
    """

    where: str
    prompt: Prompt
    chosen: str
    rejected: str
    logit: float


@dataclass(frozen=True, kw_only=True)
class PreparedPairs(PreparedPrompts):
    """Prompts with two given answers each.

    Attributes:
        answers: the better and the worse one's text.
        answer_token_ids: theirs, with the EOS token once at the end.
        logits: that the better one beats the other.
        source: what said so: the file, with its digest.
    """

    answers: tuple[tuple[str, str], ...]
    answer_token_ids: tuple[AnswerIds, ...]
    logits: tuple[float, ...]
    source: ScorerIdentity

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longer answer."""
        return max(
            (pair_tokens(*texts) for texts in zip(self.token_ids, self.answer_token_ids, strict=True)), default=0
        )


def read_pairs(
    config: PromptsConfig, base_dir: Path | None = None, key: str = "prompts", chosen_may_lose: bool = False
) -> list[GivenPair]:
    """All pairs of a source, in its order; `limit` keeps the first so many.

    Args:
        base_dir: folder that a relative path is taken from; default: the working directory.
        key: the job's key of this section, for errors.
        chosen_may_lose: whether the scores may say that the chosen answer is the worse one.

    Raises:
        InputError: the source cannot be read, holds nothing, or an entry is no pair (its file and line are named).
    """
    return [
        GivenPair(
            where,
            prompt,
            _answer_turns(where, row, config.chosen_column, f"{key}.chosen_column")[-1].text,
            _answer_turns(where, row, config.rejected_column, f"{key}.rejected_column")[-1].text,
            _logit(where, row, config, chosen_may_lose),
        )
        for where, row, prompt in read_rows(config, base_dir, key, _turns_before_the_answers)
    ]


def prepare_pairs(
    spec: JobSpec, model: ModelFiles, base_dir: Path | None = None, renderer: PromptRenderer | None = None
) -> PreparedPairs:
    """The pairs of an offline job, rendered once (rule 2); those that are too long are treated as ``prompts.too_long`` says.

    Raises:
        InputError: as `read_pairs` says; an answer holds an EOS token inside; a pair is too long and ``too_long: error``; one cannot be
            cut short enough; none is left.
    """
    renderer = renderer or PromptRenderer(model.folder)
    pairs = read_pairs(spec.prompts, base_dir, chosen_may_lose=spec.objective.record == "given-pair")
    prompts = [pair.prompt for pair in pairs]
    prompt_ids, answer_ids = render_pairs(pairs, model, renderer)
    limit = context_tokens(spec, model) or math.inf
    long = [i for i in range(len(pairs)) if pair_tokens(prompt_ids[i], answer_ids[i]) > limit]
    handling, skipped = spec.prompts.too_long, set[int]()
    if long and handling == "error":
        tokens = pair_tokens(prompt_ids[long[0]], answer_ids[long[0]])
        raise InputError(
            f"prompts: {len(long)} of {len(pairs)} prompts are longer with their longer answer than the context of {limit} tokens, the "
            f"first is {prompts[long[0]].id!r} with {tokens}; set prompts.too_long to skip or truncate"
        )
    for i in long:
        if handling == "skip":
            skipped.add(i)
            continue
        room = int(limit) - max(map(len, answer_ids[i]))
        prompts[i], prompt_ids[i] = cut_start(prompts[i], prompt_ids[i], room, renderer, remedy="shorten its answers")
    kept = [i for i in range(len(pairs)) if i not in skipped]
    if not kept:
        raise InputError(
            f"prompts: all {len(pairs)} prompts are longer with their longer answer than the context of {limit} tokens, so none is left"
        )
    return PreparedPairs(
        prompts=tuple(prompts[i] for i in kept),
        token_ids=tuple(prompt_ids[i] for i in kept),
        skipped=len(skipped),
        truncated=len(long) - len(skipped),
        answers=tuple((pairs[i].chosen, pairs[i].rejected) for i in kept),
        answer_token_ids=tuple(answer_ids[i] for i in kept),
        logits=tuple(pairs[i].logit for i in kept),
        source=_identity(spec.prompts, pairs, base_dir),
    )


def render_pairs(
    pairs: Sequence[GivenPair], model: ModelFiles, renderer: PromptRenderer
) -> tuple[list[tuple[int, ...]], list[AnswerIds]]:
    """Token ids of prompts, and of their better and worse answers with the EOS token once at the end.

    Raises:
        InputError: the template refuses a prompt, or an answer holds an EOS token inside.
    """
    prompt_ids = renderer.token_ids([pair.prompt for pair in pairs])
    return prompt_ids, _answer_ids(pairs, prompt_ids, model, renderer)


def pair_tokens(prompt: Sequence[int], answers: AnswerIds) -> int:
    """Tokens of a prompt with its longer answer."""
    return len(prompt) + max(map(len, answers))


def _turns_before_the_answers(where: str, row: Mapping[str, Any], config: PromptsConfig) -> list[Message]:
    """The prompt's turns: its own field's or, where there is none, those before the answers, which must say the same."""
    before = {
        config.chosen_column: _answer_turns(where, row, config.chosen_column, "prompts.chosen_column")[:-1],
        config.rejected_column: _answer_turns(where, row, config.rejected_column, "prompts.rejected_column")[:-1],
    }
    own = row.get(config.column) is not None
    turns = prompt_turns(where, row, config) if own else next(filter(None, before.values()), [])
    if not turns:
        raise InputError(
            f"{where}: there is no prompt: no field {config.column!r} (prompts.column), and nothing stands before the answer in "
            f"{config.chosen_column!r}"
        )
    for column, said in before.items():
        if said and _plain(said) != _plain(turns):
            other = (
                f"the prompt in {config.column!r}; mend the row, or name a field that no row has as prompts.column"
                if own
                else "what stands before the other answer; mend the row"
            )
            raise InputError(f"{where}: what stands before the answer in {column!r} is not {other}")
    return turns


def _plain(turns: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text.strip()) for turn in turns]


def _answer_turns(where: str, row: Mapping[str, Any], column: str, key: str) -> list[Message]:
    """The turns in an answer's field, the last of which is the assistant's."""
    if column not in row:
        raise InputError(
            f"{where}: there is no field {column!r}, which offline jobs need; name the answer's field with {key} (here: {', '.join(row)})"
        )
    turns = chat_turns(where, row[column], "assistant", repr(column))
    if turns[-1].role != "assistant":
        raise InputError(f"{where}: {column!r} must end with the assistant's turn, not the {turns[-1].role}'s")
    return turns


def _logit(where: str, row: Mapping[str, Any], config: PromptsConfig, chosen_may_lose: bool) -> float:
    """The difference of the answers' scores; a certain preference where a row has none."""
    columns = [config.chosen_score_column, config.rejected_score_column]
    found = [(column, row.get(column)) for column in columns if column is not None]
    if len(found) < 2 or any(value in (None, "") for _, value in found):
        return CERTAIN_LOGIT
    chosen, rejected = (_score(where, column, value) for column, value in found)
    if not (chosen >= rejected or chosen_may_lose) or not math.isfinite(chosen - rejected):
        raise InputError(
            f"{where}: the scores {chosen:g} of the better answer and {rejected:g} of the worse one contradict their order; mend the row, "
            "or set prompts.chosen_score_column: null to leave scores alone"
        )
    return chosen - rejected


def _score(where: str, column: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:  # text in a CSV cell
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {column!r} must be a finite number, not {short(value)}")
    return number


def _answer_ids(
    pairs: Sequence[GivenPair], prompt_ids: Sequence[Sequence[int]], model: ModelFiles, renderer: PromptRenderer
) -> list[AnswerIds]:
    end, ends = answer_end(model, renderer), {*eos_token_ids(model, renderer), answer_end(model, renderer)}

    def ended(pair: GivenPair, ids: tuple[int, ...]) -> array[int]:
        if ids and ids[-1] in ends:  # the file's text says how it ends: EOS is counted once
            ids = ids[:-1]
        if not ends.isdisjoint(ids):
            raise InputError(f"{pair.where}: an answer holds the token that ends answers; take it out of the text")
        return array("I", (*ids, end))

    result = []
    for start in range(0, len(pairs), CHUNK):
        chunk, ids = pairs[start : start + CHUNK], prompt_ids[start : start + CHUNK]
        prompts = [pair.prompt for pair in chunk]
        chosen = renderer.answer_token_ids(prompts, ids, [pair.chosen for pair in chunk])
        rejected = renderer.answer_token_ids(prompts, ids, [pair.rejected for pair in chunk])
        for pair, better, worse in zip(chunk, chosen, rejected, strict=True):
            result.append((ended(pair, better), ended(pair, worse)))
    return result


def _identity(config: PromptsConfig, pairs: Sequence[GivenPair], base_dir: Path | None) -> ScorerIdentity:
    """The file and its SHA-256; of a hub dataset, the SHA-256 of the pairs that were read."""
    if is_prompt_file(config.source):
        path = (base_dir or Path()) / config.source
        with reading(f"prompts.source: {path}"), path.open("rb") as file:
            return ScorerIdentity(kind="file", name=path.name, version=hashlib.file_digest(file, "sha256").hexdigest())
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.prompt.model_dump_json()}\0{pair.chosen}\0{pair.rejected}\0{pair.logit!r}\0".encode())
    return ScorerIdentity(kind="file", name=f"{config.source} ({config.split})", version=digest.hexdigest())
