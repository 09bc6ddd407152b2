"""The parts of the dashboard that need no browser: what a page knows, and how it says it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dashboard_world import fill
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from job_world import running_job

from learner.errors import InputError
from learner.records import AnswerSource, FinishReason, GroupState, Prompt
from services.access.keys import Scope
from services.access.store import AccessStore
from services.api.app import create_app
from services.api.models import Sample, SampledAnswer
from services.dashboard.bottleneck import stage_times
from services.dashboard.charts import CURVES, DIGITS, curve_options
from services.dashboard.fleet import FleetView
from services.dashboard.job_form import EXAMPLES, FIELDS, in_the_text, templates, written
from services.dashboard.live import POINTS, LiveJob
from services.dashboard.preferences_page import choice_of
from services.dashboard.session import Desk, NotAllowed, Session
from services.jobs.load import parse_job
from services.jobs.records import JobEvent, MetricPoint
from services.jobs.state import JobState
from services.jobs.store import JobStore, UnknownJob
from services.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(f"sqlite:///{tmp_path / 'store.sqlite'}")
    yield opened
    opened.close()


def measured(*values: float | None, step: int | None = None, first: int = 0) -> list[MetricPoint]:
    """Points of versions from ``first`` on."""
    return [
        MetricPoint(value=value, version=first + place, learner_step=step, time=NOW + timedelta(seconds=place))
        for place, value in enumerate(values)
    ]


def test_the_dashboard_imports_no_engine() -> None:
    code = (
        "import sys, services.dashboard.app\n"
        "found = {'torch', 'vllm', 'ray', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])


# --- what a page knows


def test_a_page_hears_of_what_is_new_and_of_nothing_twice(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    store.add_metrics(job_id, {"loss": 1.0}, learner_step=1)
    live = LiveJob(store, job_id)
    assert [point.value for point in live.series["loss"]] == [1.0]
    assert [event.seq for event in live.events] == [1, 2, 3]
    assert live.look() == frozenset()
    store.add_metrics(job_id, {"loss": 0.5}, learner_step=2)
    assert live.look() == {"metrics"} and live.look() == frozenset()
    assert [point.value for point in live.series["loss"]] == [1.0, 0.5]
    store.append_event(job_id, "note", "something")
    assert live.look() == {"events"} and live.events[-1].message == "something"
    store.set_progress(job_id, 0.5, "learning")
    assert "job" in live.look() and live.job.stage == "learning"
    store.add_version(job_id, 0, digest="d", learner_step=0)
    store.append_event(job_id, "version_published", "version 0", {"version": 0})
    assert {"versions", "events"} <= live.look() and [each.version for each in live.versions] == [0]


def test_another_jobs_points_are_not_taken_for_this_ones(store: JobStore, tmp_path: Path) -> None:
    job_id, other = running_job(store, tmp_path), running_job(store, tmp_path)
    live = LiveJob(store, job_id)
    store.add_metrics(other, {"loss": 1.0})
    assert live.look() == frozenset() and live.series == {}


def test_what_a_restart_takes_back_leaves_the_curves(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    live = LiveJob(store, job_id)
    for step in range(4):
        store.add_metrics(job_id, {"loss": float(step)}, learner_step=step)
    live.look()
    store.rewind(job_id, learner_step=1)
    store.append_event(job_id, "learner_interrupted", "version 1 begins again")
    assert "metrics" in live.look()
    assert [point.value for point in live.series["loss"]] == [0.0, 1.0]


def test_a_series_that_grows_is_read_anew_before_it_is_long(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    live = LiveJob(store, job_id)
    for step in range(POINTS + 50):
        store.add_metrics(job_id, {"loss": float(step)}, learner_step=step)
    live.look()
    points = live.series["loss"]
    assert len(points) <= POINTS and points[-1].value == POINTS + 49
    assert [point.learner_step for point in points] == sorted({point.learner_step for point in points})


def test_a_job_that_has_ended_is_not_asked_about_again_until_it_is_resumed(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    live = LiveJob(store, job_id)
    store.transition(job_id, JobState.CANCELLED)
    assert {"job", "events"} <= live.look()
    assert live.look() == frozenset() == live.look()
    store.resume(job_id)
    assert {"job", "events"} <= live.look()


def test_a_deleted_job_is_noticed(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownJob):
        LiveJob(store, "none-aaaaaa")


def test_the_fleet_is_folded_from_the_events_and_begins_anew_with_an_attempt(tmp_path: Path) -> None:
    ids = fill(f"sqlite:///{tmp_path / 'filled.sqlite'}", tmp_path)
    filled = JobStore(f"sqlite:///{tmp_path / 'filled.sqlite'}")
    live = LiveJob(filled, ids["live"])
    filled.close()
    assert sorted(live.fleet.samplers) == ["sampler-0", "sampler-1"]
    second = live.fleet.samplers["sampler-1"]
    assert (second.state, second.proved["fast"][0], second.restarts) == ("proved", 5, 1)
    assert sorted(live.examples) == list(range(6))
    live.fleet.add(event("sampler_fenced", sampler="sampler-0"))
    assert live.fleet.samplers["sampler-0"].state == "fenced"
    live.fleet.add(event("state", state="validating"))
    assert live.fleet == FleetView(samplers={}, restarts={"sampler-1": 1})


def event(kind: str, **data: str) -> JobEvent:
    return JobEvent(job_id="job", seq=1, time=NOW, kind=kind, message="", data=dict(data))


# --- how it says it


def test_the_bottleneck_is_the_stage_that_takes_longest() -> None:
    series = {
        "sampling_seconds": measured(30.0, 10.0, first=1),
        "learning_seconds": measured(10.0, 29.0, first=1),
        "publish_seconds": measured(0.0, 1.0, first=1),
    }
    times = stage_times(series, "rounds")
    assert [each.bottleneck for each in times] == [("sampling", 0.75), ("learning", 0.725)]
    assert "72%" in times[-1].in_words and "version 2" in times[-1].in_words


def test_online_the_bottleneck_is_what_the_learner_waits_for() -> None:
    series = {"lease_seconds": measured(3.0), "step_seconds": measured(1.0), "sampling_seconds": measured(100.0)}
    assert stage_times(series, "online")[0].bottleneck == ("waiting for samples", 0.75)
    assert stage_times({}, "online") == []


def test_an_interval_is_a_band_and_a_gap_stays_a_gap() -> None:
    series = {
        "win_rate": measured(0.5, None, 0.75),
        "win_rate_low": measured(0.4, None, 0.7),
        "win_rate_high": measured(0.6, None, 0.85),
    }
    options = curve_options(CURVES[0], series)
    low, width, line = options["series"]
    assert low["data"] == [[0, 40.0], [1, None], [2, 70.0]]
    assert width["data"] == [[0, 20.0], [1, None], [2, 15.0]] and low["stack"] == width["stack"]
    assert line["data"] == [[0, 50.0], [1, None], [2, 75.0]]
    assert "win rate 75 %" in options["aria"]["label"]["description"]
    assert "interval" not in options["aria"]["label"]["description"]


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=20))
def test_a_curve_keeps_every_point_to_so_many_digits(values: list[float | None]) -> None:
    loss = next(curve for curve in CURVES if curve.title == "Loss")
    series = {"loss": measured(*values)}
    drawn = [y for _, y in curve_options(loss, series)["series"][0]["data"]]
    assert [y is None for y in drawn] == [value is None for value in values]
    for y, value in zip(drawn, values, strict=True):
        assert y is None or y == pytest.approx(value, rel=10.0 ** (1 - DIGITS))


# --- the form


def test_every_example_is_a_template_and_a_job() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert names and templates().keys() == names | {"empty"}
    for name in names:
        assert parse_job(written(templates()[name], {})).name
        assert in_the_text(templates()[name])["policy.model"]


def test_a_field_replaces_its_key_and_leaves_the_others() -> None:
    text = "name: a\npolicy: {model: m, dtype: float32}\nprompts: {source: p}\nobjective: {kind: sppo, beta: 0.5}\n"
    job = written(text, {"policy.model": " n ", "schedule.rounds": "4", "optimizer.learning_rate": "1e-4", "seed": ""})
    assert job == {
        "name": "a",
        "policy": {"model": "n", "dtype": "float32"},
        "prompts": {"source": "p"},
        "objective": {"kind": "sppo", "beta": 0.5},
        "schedule": {"rounds": 4},
        "optimizer": {"learning_rate": 1e-4},
    }
    assert written(text, {"objective.kind": "sppo"})["objective"] == {"kind": "sppo", "beta": 0.5}
    assert written(text, {"objective.kind": "dpo"})["objective"] == {"kind": "dpo"}


def test_every_fields_path_is_a_key_of_a_job() -> None:
    text = (
        "policy: {model: m}\nprompts: {source: p}\nscorer: {model: {kind: pairrm}}\nschedule: {prompts_per_step: 1}\n"
    )
    given_ = {"text": "x", "whole number": "3", "number": "0.5", "choice": "dpo"}
    for field in FIELDS:
        parse_job(written(text, {field.path: given_[field.kind]}))


def test_numbers_that_are_none_are_all_said_at_once() -> None:
    with pytest.raises(InputError) as refused:
        written("name: a", {"schedule.rounds": "2.5", "seed": "x"})
    assert str(refused.value).splitlines() == [
        "schedule.rounds: '2.5' is not a whole number",
        "seed: 'x' is not a whole number",
    ]


@pytest.mark.parametrize("text", ["", "- a", "a: [", "a: 1\na: 2", "a: &x {}\nb: *x"])
def test_a_text_that_is_no_job_file_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="the job"):
        written(text, {})
    assert in_the_text(text) == {}


# --- what a page may do


def session_of(key: str | None, settings: Settings) -> tuple[Session, AccessStore]:
    """An open page of somebody with a key."""
    store = JobStore(settings.store_url)
    app = create_app(settings, store, admit=parse_job)
    desk = Desk(app, app.state.context)
    caller = app.state.gate.identify(key, datetime.now(UTC))
    headers = [(b"cookie", f"sparring_key={key}".encode())] if key else []
    request = Request({"type": "http", "headers": headers, "client": ("10.0.0.7", 1), "caller": caller})
    return Session(desk, request), app.state.context.access


async def test_an_act_needs_a_key_that_may_write_and_is_still_good(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    keys = AccessStore(settings.store_url)
    (writer, write_key), (_, read_key) = keys.create_key("anna", Scope.WRITE), keys.create_key("ben", Scope.READ)
    done: list[str] = []
    anna, access = session_of(write_key.text, settings)
    ben, _ = session_of(read_key.text, settings)
    await anna.write("POST /v1/jobs", "job-1", lambda: done.append("by anna"))
    with pytest.raises(NotAllowed, match="your key has the scope read; this needs write"):
        await ben.write("POST /v1/jobs", "job-1", lambda: done.append("by ben"))
    keys.revoke_key(writer.id)
    assert not anna.still_good()
    with pytest.raises(NotAllowed, match="your key is good no more"):
        await anna.write("POST /v1/jobs", "job-1", lambda: done.append("too late"))
    assert done == ["by anna"]
    noted = [(entry.actor, entry.status, entry.job_id, entry.address) for entry in access.audit()]
    assert noted == [
        (name, status, "job-1", "10.0.0.7") for name, status in (("anna", 403), ("ben", 403), ("anna", 200))
    ]


async def test_an_act_that_fails_is_noted_too(tmp_path: Path) -> None:
    session, access = session_of(None, Settings(home=tmp_path))

    def refuse() -> None:
        raise InputError("no")

    def break_down() -> None:
        raise RuntimeError("disk full")

    for act, error in ((refuse, InputError), (break_down, RuntimeError)):
        with pytest.raises(error):
            await session.write("POST /v1/jobs", None, act)
    assert [entry.status for entry in access.audit()] == [500, 422]


# --- giving preferences


def sample(*texts: str, matrix: tuple[tuple[float, ...], ...]) -> Sample:
    answers = tuple(
        SampledAnswer(
            text=text,
            tokens=1,
            logprob=None,
            finish_reason=FinishReason.GIVEN,
            source=AnswerSource.FILE,
            module=None,
            version=None,
            adapter_digest=None,
            sampling=None,
            seed=None,
            sampler=None,
            win_probability=None,
        )
        for text in texts
    )
    return Sample(
        group_id="g",
        source=AnswerSource.FILE,
        round=0,
        index=0,
        state=GroupState.READY,
        version=0,
        produced_version=None,
        stage=None,
        reason=None,
        prompt=Prompt.of("p", "Why?", domain="bills"),
        answers=answers,
        win_matrix=matrix,
    )


def test_people_are_asked_about_the_two_answers_that_the_scorer_is_least_sure_of() -> None:
    asked = sample("a", "b", "c", matrix=((0.5, 0.9, 0.6), (0.1, 0.5, 0.8), (0.4, 0.2, 0.5)))
    orders = set()
    for seed in range(20):
        choice = choice_of(asked, random.Random(seed))
        assert choice is not None and {choice.first.text, choice.second.text} == {"a", "c"}
        orders.add(choice.first.text)
    assert orders == {"a", "c"}, "which stands first is drawn"
    said = choice.preference(choice.second, "anna")
    assert (said["chosen"], said["rejected"]) == (choice.second.text, choice.first.text)
    assert (said["domain"], said["rater"]) == ("bills", "anna")


def test_nobody_is_asked_about_two_answers_that_are_the_same_or_empty() -> None:
    assert choice_of(sample("a", "a", " ", matrix=((0.5,) * 3,) * 3), random.Random(0)) is None
