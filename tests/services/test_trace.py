"""Groups' ways through the stages: spans from the ledger, over REST, and as a file for viewers of traces."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import strategies as st
from job_world import fill_ledger, running_job
from typer.testing import CliRunner

from learner.errors import InputError
from learner.records import AnswerSource, GroupState
from services.api.app import create_app
from services.api.routes.trace import EXAMPLE
from services.cli.main import app as command_line
from services.jobs.store import JobStore
from services.jobs.trace import STAGES, Span, TracePage, chrome_trace, spans
from services.settings import Settings
from workers.replay.rows import GroupRow


def row(state: GroupState = GroupState.CONSUMED, **more: float | int | None) -> GroupRow:
    times = {"admitted_at": 100.0, "sampled_at": 104.0, "stored_at": 105.0, "leased_at": 109.0, "updated_at": 112.0}
    values = {
        "source": AnswerSource.POLICY,
        "round": 0,
        "index": 7,
        "attempt": 0,
        "version": 0,
        "stage": None,
        "reason": None,
    }
    counts = {"bytes": 0, "passes": 1, "duplicates": 0, "produced_version": 1 if state is GroupState.CONSUMED else None}
    return GroupRow.model_validate({"group_id": "job/r0/7", "state": state, **values, **counts, **times, **more})


def timed(found: list[Span]) -> dict[str, tuple[float, float]]:
    return {span.name: (span.start.timestamp(), span.end.timestamp()) for span in found}


def test_a_consumed_group_has_a_span_for_each_stage_below_its_own() -> None:
    found = list(spans([row()], {1: 112.0}))
    assert timed(found) == {
        "group": (100, 112),
        "sampling": (100, 104),
        "scoring": (104, 105),
        "queued": (105, 109),
        "learning": (109, 112),
    }
    root, *stages = found
    assert root.parent_span_id is None and {span.parent_span_id for span in stages} == {root.span_id}
    assert len({span.trace_id for span in found}) == 1 and len({span.span_id for span in found}) == 5
    assert (len(root.trace_id), len(root.span_id)) == (32, 16)
    assert root.attributes == {"round": 0, "index": 7, "state": "consumed", "version": 0, "produced_version": 1}


def test_stages_that_were_not_passed_have_no_span() -> None:
    ready = row(GroupState.READY, leased_at=None, updated_at=105.0)
    assert timed(list(spans([ready], {}))) == {"group": (100, 105), "sampling": (100, 104), "scoring": (104, 105)}
    expired = row(GroupState.EXPIRED, leased_at=None, updated_at=111.0)
    assert timed(list(spans([expired], {})))["queued"] == (105, 111)
    failed = row(GroupState.FAILED, sampled_at=None, stored_at=None, leased_at=None, updated_at=103.0)
    assert timed(list(spans([failed], {}))) == {"group": (100, 103)}


def test_what_came_from_outside_was_neither_sampled_nor_scored() -> None:
    assert set(timed(list(spans([row(sampled_at=None)], {1: 112.0})))) == {"group", "queued", "learning"}


@given(st.lists(st.none() | st.floats(0, 1e9), min_size=4, max_size=4), st.sampled_from(GroupState))
def test_no_span_ends_before_it_begins_whatever_the_clocks_say(times: list[float | None], state: GroupState) -> None:
    sampled, stored, leased, committed = times
    rows = [row(state, sampled_at=sampled, stored_at=stored, leased_at=leased, updated_at=committed or 0.0)]
    found = list(spans(rows, {} if committed is None else {1: committed}))
    assert all(span.start <= span.end for span in found) and found[0].name == "group"
    assert [span.name for span in found[1:]] == [name for name in STAGES if name in {span.name for span in found}]


async def test_rest_gives_pages_of_spans(home: Path) -> None:
    settings = Settings.load()
    store = JobStore(settings.store_url)
    job_id = running_job(store, home)
    transport = httpx.ASGITransport(create_app(settings, store))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as http:
        address = f"/v1/jobs/{job_id}/trace"
        assert (await http.get(address)).json() == {"spans": [], "next": None}
        fill_ledger(home, job_id, 5, consumed=2)
        first = (await http.get(address, params={"limit": 4})).json()
        second = (await http.get(address, params={"limit": 4, "after": first["next"]})).json()
        assert (await http.get(address, params={"after": "x"})).status_code == 422
        assert (await http.get("/v1/jobs/no-abcdef/trace")).status_code == 404
    store.close()
    assert second["next"] is None
    groups = [span["group_id"] for span in first["spans"] + second["spans"] if span["name"] == "group"]
    assert groups == [f"{job_id}/r0/{index}" for index in range(6)]
    learned = [span for span in first["spans"] if span["name"] == "learning"]
    assert len(learned) == 2 and learned[0]["worker"] == "learner"


def test_the_example_is_a_page() -> None:
    TracePage.model_validate(EXAMPLE)


def test_the_command_writes_what_a_viewer_opens(home: Path, tmp_path: Path) -> None:
    store = JobStore(Settings.load().store_url)
    job_id = running_job(store, home)
    fill_ledger(home, job_id, 3, consumed=3)
    store.close()
    done = CliRunner().invoke(command_line, ["trace", job_id, "-o", str(tmp_path / "t.json")])
    assert done.exit_code == 0 and "10 spans" in done.output, done.output
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    begun = {(each["id"], each["pid"]): each["ts"] for each in events if each["ph"] == "b"}
    ended = {(each["id"], each["pid"]): each["ts"] for each in events if each["ph"] == "e"}
    assert begun.keys() == ended.keys() and all(begun[key] <= ended[key] for key in begun)
    named = {each["pid"]: each["args"]["name"] for each in events if each["ph"] == "M"}
    assert set(named.values()) == {"groups", "queue", "learner"} and {pid for _, pid in begun} == set(named)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(home: Path, tmp_path: Path) -> None:
    for out, sentence in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "none" / "t.json", f"there is no folder {tmp_path / 'none'}; make it, or name another"),
    ):
        done = CliRunner().invoke(command_line, ["trace", "no-abcdef", "-o", str(out)])
        assert isinstance(done.exception, InputError) and sentence in str(done.exception)
        assert str(done.exception).startswith(f"--out: {out}")


def test_a_trace_of_nothing_is_empty() -> None:
    assert chrome_trace([]) == {"displayTimeUnit": "ms", "traceEvents": []}
