"""Preferences that people send while a job runs: read, checked as far as can be done here, stored, and counted.

The service and the command line take them in alike. Of a local model they are rendered before they are acknowledged, without torch; of one
that is only on the hub the controller renders them, and refuses what does not fit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from learner.errors import InputError
from learner.preference import CERTAIN_LOGIT
from learner.records import AnswerSource, Message, Prompt
from services.jobs.layout import JobPaths
from services.jobs.model_files import ModelFiles, read_model
from services.jobs.pairs import AnswerIds, GivenPair, pair_tokens, render_pairs
from services.jobs.paths import is_hub_name
from services.jobs.preferences import check_domain, check_open
from services.jobs.prepare import context_tokens
from services.jobs.problems import odd_values, sentences
from services.jobs.prompts import chat_turns, json_rows, short
from services.jobs.records import FeedbackCounts, Preference, PreferencesReceipt
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec
from services.jobs.state import StateConflict
from services.jobs.store import JobStore
from workers.replay.rows import LedgerCounts
from workers.replay.view import LedgerView

REFUSALS_SHOWN = 100
COMPLAINTS = 100
"""Preferences of one request that are complained of; a request can hold a million."""


class PreferenceRenderer:
    """Makes token ids of preferences, as a job's policy would have read and written them (rule 2).

    Args:
        spec: the job.
        model: the policy's files.
        renderer: of its prompts.
    """

    def __init__(self, spec: JobSpec, model: ModelFiles, renderer: PromptRenderer) -> None:
        self._system, self._model, self._renderer = spec.prompts.system, model, renderer
        self._context = context_tokens(spec, model)

    def render(self, where: str, preference: Preference) -> tuple[GivenPair, tuple[int, ...], AnswerIds]:
        """A preference with the token ids of its prompt and of its answers, the better one first.

        Raises:
            InputError: it is no preference, the chat template refuses it, an answer holds an EOS token, or it is too long.
        """
        pair = given_pair(where, preference, self._system)
        try:
            (prompt_ids,), (answer_ids,) = render_pairs([pair], self._model, self._renderer)
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
        tokens = pair_tokens(prompt_ids, answer_ids)
        if self._context is not None and tokens > self._context:
            raise InputError(
                f"{where}: 'prompt' with the longer of 'chosen' and 'rejected' has {tokens} tokens, more than the context of "
                f"{self._context}; shorten it"
            )
        return pair, prompt_ids, answer_ids


def given_pair(where: str, preference: Preference, system: str | None = None) -> GivenPair:
    """A preference as a pair: its prompt as chat turns, and which answer is better beyond doubt.

    Raises:
        InputError: its prompt is neither text nor chat messages that end with the user's, an answer is empty, or both are the same.
    """
    turns = chat_turns(where, preference.prompt, what="'prompt'")
    if system is not None and turns[0].role != "system":
        turns = [Message.of("system", system), *turns]
    if turns[-1].role != "user":
        raise InputError(f"{where}: 'prompt' must end with the user's message, not the {turns[-1].role}'s")
    chosen, rejected = (
        chat_turns(where, getattr(preference, name), "assistant", f"'{name}'")[0].text
        for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise InputError(
            f"{where}: 'chosen' and 'rejected' are the same text, so that nothing can be learned from them"
        )
    prompt = Prompt(id=f"feedback/{preference.id or ''}", messages=tuple(turns), domain=preference.domain)
    return GivenPair(where, prompt, chosen, rejected, CERTAIN_LOGIT)


def parse_preference(where: str, data: object) -> Preference:
    """The preference in plain data.

    Raises:
        InputError: what is wrong with which field; it begins with ``where``.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: a preference must be an object with prompt, chosen and rejected, not {short(data)}")
    try:
        preference = Preference.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {sentence}" for sentence in sentences(error, Preference))) from None
    if odd := list(odd_values(data, preference.model_dump())):
        raise InputError("\n".join(f"{where}: {sentence}" for sentence in odd))
    given_pair(where, preference)
    return preference


def read_preferences(path: Path) -> list[tuple[str, Preference]]:
    """The preferences in a JSON Lines file, each with its file and line.

    Raises:
        InputError: there is no such file, it holds none, or a line holds no preference (the line is named).
    """
    if not os.path.isfile(path):  # pathlib's raises where a name is too long
        what = "is no plain file; name one of JSON Lines" if os.path.exists(path) else "there is no such file"
        raise InputError(f"{path}: {what}")
    found = [(where, parse_preference(where, row)) for where, row in json_rows(path)]
    if not found:
        raise InputError(f"{path}: holds no preferences; each line must hold one JSON object")
    return found


def take_in(
    store: JobStore, job_id: str, data: Sequence[object], *, idempotency_key: str | None = None
) -> PreferencesReceipt:
    """Check preferences and store them: all, or none. Complaints begin with ``preferences[N]``, counted from 0.

    Raises:
        UnknownJob: there is none of that id.
        StateConflict: the job takes no preferences, or no more.
        IdempotencyConflict: the key came with another request.
        InputError: one is not right; each complaint is a line.
    """
    job = store.get(job_id)
    spec = JobSpec.model_validate(job.spec)
    try:
        check_open(job_id, job.state, spec)
        renderer = _renderer(spec)
    except StateConflict:
        if idempotency_key is None:
            raise
        renderer = None  # the store refuses it too, unless the key says that it was done while the job took preferences
    preferences, complaints = list[Preference](), list[str]()
    for place, each in enumerate(data):
        where = f"preferences[{place}]"
        try:
            preference = parse_preference(where, each)
            check_domain(where, preference.domain, spec)
            if renderer is not None:
                renderer.render(where, preference)
            preferences.append(preference)
        except InputError as error:
            complaints.append(str(error))
            if len(complaints) == COMPLAINTS and place + 1 < len(data):
                complaints.append(f"preferences: the {len(data) - place - 1} after these were not looked at any more")
                break
    if complaints:
        raise InputError("\n".join(complaints))
    return store.add_preferences(job_id, preferences, idempotency_key=idempotency_key)


def count_feedback(store: JobStore, job_id: str) -> FeedbackCounts:
    """Where a job's preferences stand.

    Raises:
        UnknownJob: there is none of that id.
    """
    job = store.get(job_id)
    account = _account(JobPaths(Path(job.home), job_id).replay_database)
    totals = store.preference_totals(job_id)  # read last: what the ledger has, the store has
    received = totals.waiting + totals.taken + totals.refused
    return FeedbackCounts(
        share=JobSpec.model_validate(job.spec).feedback.share,
        received=received,
        waiting=received - totals.refused - account.admitted,
        admitted=account.remaining,
        consumed=account.consumed,
        skipped={str(reason): count for reason, count in account.skipped.items()},
        failed={str(stage): count for stage, count in account.failed.items()},
        refused=totals.refused,
        refusals=tuple(store.refused_preferences(job_id, REFUSALS_SHOWN)),
    )


def _account(ledger: Path) -> LedgerCounts:
    """What became of admitted preferences."""
    if not ledger.is_file():  # not begun to sample
        return LedgerCounts()
    view = LedgerView(ledger)
    try:
        return view.source_counts(AnswerSource.FEEDBACK)
    finally:
        view.close()


def _renderer(spec: JobSpec) -> PreferenceRenderer | None:
    """None where the policy's files are not here, or only transformers can read its tokenizer."""
    folder = Path(spec.policy.model)
    if is_hub_name(spec.policy.model) or not (folder / "tokenizer.json").is_file():
        return None
    return PreferenceRenderer(spec, *_policy(folder))


@lru_cache(maxsize=4)
def _policy(folder: Path) -> tuple[ModelFiles, PromptRenderer]:
    return read_model(folder), PromptRenderer(folder)
