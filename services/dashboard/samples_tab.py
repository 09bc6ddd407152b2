"""A job's samples: prompts, answers with their provenance, and the win matrix as a heat map."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from nicegui import ui

from learner.records import GroupState, Prompt
from services.api.models import Sample, SampledAnswer, SamplePage
from services.api.routes.samples import samples as read_samples
from services.dashboard.frame import Text, box
from services.dashboard.heat import heat_map
from services.dashboard.live import Part
from services.dashboard.tab import JobDesk
from services.dashboard.words import plural, share

PAGE = 20
EXCERPT = 90
"""Characters of a prompt in the list."""

ANY = "any"


class SamplesTab:
    """A list to choose from, and the sample that was chosen."""

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk
        self._cursors: list[str | None] = [None]
        self._next: str | None = None
        self._begun = False
        with box("div", "bar"):
            self._state = ui.select([ANY, *GroupState], value=ANY, label="State", on_change=self._from_start)
            self._version = ui.select([ANY], value=ANY, label="Written by version", on_change=self._from_start)
            for field in (self._state, self._version):
                field.props("outlined dense")
            self._back = ui.button("Page before", on_click=self._page_back).props("flat")
            self._on = ui.button("Next page", on_click=self._page_on).props("flat")
            ui.button("Look again", on_click=self._load).props("flat")
        with box("div", "split samples"):
            self._list = box("ul", "choices", aria_label="Samples")
            self._one = box("div", "sample", aria_live="polite")

    async def refresh(self, changed: Collection[Part]) -> None:
        """Offer new versions; the list itself stays until it is asked for again, so that it does not move under a reader."""
        newest = self._desk.live.job.current_version
        options = [ANY, *(str(version) for version in range(0 if newest is None else newest + 1))]
        if self._version.options != options:
            self._version.set_options(options)
        if not self._begun:
            self._begun = True
            await self._load()

    async def _from_start(self, _event: Any = None) -> None:
        self._cursors = [None]
        await self._load()

    async def _page_on(self) -> None:
        self._cursors.append(self._next)
        await self._load()

    async def _page_back(self) -> None:
        self._cursors.pop()
        await self._load()

    async def _load(self) -> None:
        page = await asyncio.to_thread(self._read)
        self._next = page.next
        self._back.set_visibility(len(self._cursors) > 1)
        self._on.set_visibility(page.next is not None)
        self._list.clear()
        self._one.clear()
        with self._list:
            if not page.samples:
                Text("li", "No samples yet, or none that fit.", "quiet")
            for sample in page.samples:
                self._choice(sample)
        if page.samples:
            self._open(page.samples[0])

    def _read(self) -> SamplePage:
        state, version = self._state.value, self._version.value
        return read_samples(
            self._desk.shared,
            self._desk.live.job.id,
            state=None if state == ANY else GroupState(state),
            version=None if version == ANY else int(version),
            limit=PAGE,
            after=self._cursors[-1],
        )

    def _choice(self, sample: Sample) -> None:
        with box("li"), box("button", "choice", type="button") as choice:
            Text("span", _excerpt(sample.prompt))
            Text("span", f"round {sample.round}, #{sample.index}, {sample.state}, v{sample.version}", "quiet")
        choice.on("click", lambda: self._choose(sample))

    def _choose(self, sample: Sample) -> None:
        self._open(sample)
        # on a phone it stands below the list
        ui.run_javascript(f'getHtmlElement({self._one.id}).scrollIntoView({{block: "nearest"}})')

    def _open(self, sample: Sample) -> None:
        self._one.clear()
        with self._one:
            show_sample(sample)
            if self._desk.session.may_write and len(sample.answers) > 1:
                address = f"/jobs/{self._desk.live.job.id}/preferences?sample={sample.round}.{sample.index}"
                ui.link("Say which of two answers is better", address)


def show_sample(sample: Sample) -> None:
    """One sample: its prompt, its answers, and how they compare."""
    Text("h2", f"Round {sample.round}, #{sample.index}")
    learned = "" if sample.produced_version is None else f", learned from in version {sample.produced_version}"
    reason = f" ({sample.reason})" if sample.reason else ""
    Text("p", f"{sample.state}{reason}{learned}; {sample.source}", "quiet")
    show_prompt(sample.prompt)
    if not sample.answers:
        Text("p", "No answers yet.", "quiet")
        return
    Text("h3", plural(len(sample.answers), "answer"))
    with box("ol", "answers"):
        for place, answer in enumerate(sample.answers, start=1):
            with box("li", "answer"):
                Text("p", _provenance(place, answer), "quiet")
                Text("div", answer.text, "said")
    names = [str(place) for place in range(1, len(sample.answers) + 1)]
    matrix = [[None if i == j else share for j, share in enumerate(row)] for i, row in enumerate(sample.win_matrix)]
    heat_map("Win matrix: how likely the row's answer beats the column's", names, names, matrix, "answer")
    if sample.scorer is not None:
        Text("p", f"Compared by {sample.scorer.kind} {sample.scorer.name}", "quiet wrap")


def show_prompt(prompt: Prompt | None) -> None:
    """A prompt's turns."""
    if prompt is None:
        Text("p", "The prompt is not kept.", "quiet")
        return
    with box("div", "prompt"):
        for turn in prompt.messages:
            Text("p", turn.role if prompt.domain is None else f"{turn.role} · {prompt.domain}", "quiet")
            Text("div", turn.text, "said")


def _excerpt(prompt: Prompt | None) -> str:
    text = "" if prompt is None else " ".join(prompt.messages[-1].text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _provenance(place: int, answer: SampledAnswer) -> str:
    writer = str(answer.source) if answer.module is None else f"{answer.module} v{answer.version}"
    parts = [f"Answer {place}", writer, plural(answer.tokens, "token"), str(answer.finish_reason)]
    if answer.win_probability is not None:
        parts.append(f"wins {share(answer.win_probability)}")
    return " · ".join([*parts, *([answer.sampler] if answer.sampler else [])])
