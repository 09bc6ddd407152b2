"""Where people say which of two answers is better, and the job learns from it."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from fastapi import Request
from nicegui import ui

from learner.errors import InputError
from services.api.models import Sample, SampledAnswer
from services.api.routes.samples import samples as read_samples
from services.dashboard.frame import RESPONSE_SECONDS, Text, box, every_second, frame, set_attribute
from services.dashboard.samples_tab import show_prompt
from services.dashboard.session import Desk, Session
from services.dashboard.words import plural, share
from services.jobs.feedback import count_feedback, take_in
from services.jobs.preferences import check_open
from services.jobs.problems import NOT_TEXT
from services.jobs.records import FeedbackCounts, JobRecord
from services.jobs.spec import JobSpec
from services.jobs.store import UnknownJob

PAGE = 20
_SAMPLE = re.compile(r"(\d{1,9})\.(\d{1,9})")


@dataclass(frozen=True)
class Choice:
    """Two answers to a prompt, in the order in which they are shown, which is drawn: nobody shall prefer the first one by habit."""

    sample: Sample
    first: SampledAnswer
    second: SampledAnswer

    def preference(self, chosen: SampledAnswer, rater: str) -> dict[str, object]:
        """What is sent to the job: the same that REST takes."""
        prompt = self.sample.prompt
        assert prompt is not None
        rejected = self.second if chosen is self.first else self.first
        said: dict[str, object] = {
            "prompt": [{"role": turn.role, "content": turn.text} for turn in prompt.messages],
            "chosen": chosen.text,
            "rejected": rejected.text,
            "rater": rater,
        }
        return said if prompt.domain is None else {**said, "domain": prompt.domain}


def choice_of(sample: Sample, draw: random.Random) -> Choice | None:
    """The two answers of a sample that the scorer is least sure about; None where no two different ones can be learned from."""
    if sample.prompt is None:
        return None
    pairs = [
        (abs(sample.win_matrix[i][j] - 0.5), i, j)
        for i, j in combinations(range(len(sample.answers)), 2)
        if _can_be_learned(sample.answers[i].text) and _can_be_learned(sample.answers[j].text)
        if sample.answers[i].text != sample.answers[j].text
    ]
    if not pairs:
        return None
    _, i, j = min(pairs)
    first, second = draw.sample([sample.answers[i], sample.answers[j]], 2)
    return Choice(sample, first, second)


def _can_be_learned(text: str) -> bool:
    """Whether a preference may hold this answer: an untrained policy writes empty ones, and characters that are no text."""
    return bool(text.strip()) and not NOT_TEXT.search(text)


def register(desk: Desk) -> None:
    """Serve the page."""

    @ui.page("/jobs/{job_id}/preferences", response_timeout=RESPONSE_SECONDS)
    async def preferences(request: Request, job_id: str, sample: str | None = None) -> None:
        session = Session(desk, request)
        try:
            job = await asyncio.to_thread(desk.shared.store.get, job_id)
            with frame(session, "Which answer is better?"):
                with box("p"):
                    ui.link(f"Back to {job_id}", f"/jobs/{job_id}")
                _page(desk, session, job, sample)
        except UnknownJob as error:
            with frame(session, "No such job"):
                Text("p", str(error))


def _page(desk: Desk, session: Session, job: JobRecord, sample: str | None) -> None:
    try:
        check_open(job.id, job.state, JobSpec.model_validate(job.spec))
    except InputError as error:
        Text("p", str(error)[:1].upper() + str(error)[1:] + ".")
        return
    if not session.may_write:
        Text("p", f"Your key has the scope {session.caller.scope}; giving preferences needs write.")
        return
    match = _SAMPLE.fullmatch(sample or "")
    _Rating(desk, session, job, (int(match[1]), int(match[2])) if match else None)


class _Rating:
    """One pair after the other. Buttons stay where they are, so that a keyboard can go on."""

    def __init__(self, desk: Desk, session: Session, job: JobRecord, first: tuple[int, int] | None) -> None:
        self._desk, self._session, self._job = desk, session, job
        self._choices = self._all(first)
        self._choice: Choice | None = None
        self._counts = Text("p", "", "quiet")
        self._said = Text("p")
        set_attribute(self._said, "role", "status")
        self._question = box("div")
        with box("div", "pair"):
            self._first, self._take_first = self._answer("First answer", "The first is better")
            self._second, self._take_second = self._answer("Second answer", "The second is better")
        with box("div", "bar"):
            self._skip = ui.button("Neither, show another pair", on_click=self._pass).props("outline no-caps")
        self._enable(False)
        self._take_first.on_click(lambda: self._take(first=True))
        self._take_second.on_click(lambda: self._take(first=False))
        ui.timer(0, self._next, once=True)
        every_second(self._session, self._count)

    def _answer(self, name: str, label: str) -> tuple[Text, ui.button]:
        with box("div", "answer"):
            Text("h2", name)
            said = Text("div", "", "said")
            button = ui.button(label).props("no-caps")
        return said, button

    def _all(self, first: tuple[int, int] | None) -> Iterator[Choice]:
        """Pairs of the newest version's samples, then of the others; first the one that was asked for. Reads the ledger as it goes."""
        draw = random.Random()
        after = None if first is None else (f"{first[0]}.{first[1] - 1}" if first[1] else None)
        versions = (None,) if first is not None else (self._job.current_version, None)
        for version in versions:
            cursor = after
            while True:
                page = read_samples(
                    self._desk.shared, self._job.id, state=None, version=version, limit=PAGE, after=cursor
                )
                for sample in page.samples:
                    if first is not None and (sample.round, sample.index) < first:
                        continue
                    choice = choice_of(sample, draw)
                    if choice is not None:
                        yield choice
                cursor = page.next
                if cursor is None:
                    break

    def _enable(self, enabled: bool) -> None:
        for button in (self._take_first, self._take_second, self._skip):
            button.set_enabled(enabled)

    async def _next(self) -> None:
        self._enable(False)  # one pair at a time, also where somebody clicks twice
        try:
            self._choice = choice = await asyncio.to_thread(next, self._choices, None)
        except Exception as error:
            self._complain(f"The next pair cannot be read ({error}); reload this page.")
            raise
        self._question.clear()
        self._enable(choice is not None)
        self._first.text = "" if choice is None else choice.first.text
        self._second.text = "" if choice is None else choice.second.text
        with self._question:
            if choice is None:
                Text("p", "There are no more pairs. Come back when the job has written more.")
            else:
                show_prompt(choice.sample.prompt)

    def _complain(self, text: str) -> None:
        self._said.text = text
        set_attribute(self._said, "class", "error")

    async def _pass(self) -> None:
        self._said.text = ""
        await self._next()

    async def _take(self, *, first: bool) -> None:
        choice = self._choice
        if choice is None:
            return
        self._enable(False)
        chosen = choice.first if first else choice.second
        store, job_id = self._desk.shared.store, self._job.id
        preference = choice.preference(chosen, self._session.caller.actor)
        try:
            receipt = await self._session.write(
                "POST /v1/jobs/{job_id}/preferences", job_id, lambda: take_in(store, job_id, [preference])
            )
        except InputError as error:
            self._complain(str(error))
            self._enable(True)
            return
        except Exception as error:
            self._complain(f"It was not stored ({error}); try again.")
            self._enable(True)
            raise
        set_attribute(self._said, "class", None)
        rate = "" if chosen.win_probability is None else f", which wins {share(chosen.win_probability)} by the scorer"
        writer = str(chosen.source) if chosen.module is None else f"{chosen.module} v{chosen.version}"
        stored = "Stored" if receipt.stored else "Known already"
        self._said.text = f"{stored}: you preferred the answer of {writer}{rate}."
        await self._next()

    async def _count(self) -> None:
        try:
            counts = await asyncio.to_thread(count_feedback, self._desk.shared.store, self._job.id)
        except UnknownJob:
            ui.navigate.to("/")
            return
        self._counts.text = _in_words(counts)


def _in_words(counts: FeedbackCounts) -> str:
    refused = f", {counts.refused} refused" if counts.refused else ""
    return (
        f"At most {counts.share:.0%} of each version is learned from people. {plural(counts.received, 'preference')} so far: "
        f"{counts.waiting} waiting, {counts.admitted} on their way, {counts.consumed} learned from{refused}."
    )
