"""A job's log records: merged over its workers, in pages that lose and repeat nothing, over REST and in the terminal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_world import running_job
from typer.testing import CliRunner

from learner.errors import InputError
from services.api.app import create_app
from services.cli.main import app as command_line
from services.jobs import logfiles
from services.jobs.layout import JobPaths
from services.jobs.logfiles import LEVELS, LogPage, records, tail
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings

START = datetime(2026, 5, 4, 9, tzinfo=UTC)


def write(folder: Path, worker: str, *said: tuple[float, str, str]) -> Path:
    """Append records to a worker's file: seconds, level, message."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{worker}-1.jsonl"
    with path.open("a") as file:
        for seconds, level, message in said:
            time = (START + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
            values = {"time": time, "level": level, "logger": "x", "message": message, "job_id": "j", "worker": worker}
            file.write(json.dumps(values) + "\n")
    return path


def messages(page: LogPage) -> list[str]:
    return [record.message for record in page.records]


def test_records_of_all_workers_come_in_the_order_of_time(tmp_path: Path) -> None:
    write(tmp_path, "learner", (1, "info", "b"), (3, "error", "d"))
    write(tmp_path, "sampler-0", (0, "info", "a"), (2, "warning", "c"))
    assert messages(records(tmp_path)) == ["a", "b", "c", "d"]
    assert messages(records(tmp_path, level="warning")) == ["c", "d"]
    assert records(tmp_path / "absent") == LogPage(records=(), next="e30", more=False)


@given(
    written=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.sampled_from(LEVELS)), max_size=40),
    rounds=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    level=st.sampled_from(LEVELS),
)
def test_pages_repeat_and_lose_nothing_while_workers_go_on_writing(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[str, int, logfiles.Level]],
    rounds: list[int],
    level: logfiles.Level,
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    after, found = None, list[str]()
    parts = [written[place :: len(rounds)] for place in range(len(rounds))]
    for limit, part in zip(rounds, parts, strict=True):
        for number, (worker, seconds, severity) in enumerate(part):
            write(folder, worker, (seconds, severity, f"{worker}{seconds}{severity}{limit}{number}"))
        page = records(folder, after=after, limit=limit, level=level)
        after = page.next
        found += messages(page)
    while (page := records(folder, after=after, limit=3, level=level)).records:
        after = page.next
        found += messages(page)
    everything = messages(records(folder, limit=1000, level=level))
    assert sorted(found) == sorted(everything) and not page.more
    assert len(everything) == sum(LEVELS.index(severity) >= LEVELS.index(level) for _, _, severity in written)


def test_a_line_that_is_just_being_written_comes_once_it_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "learner", (0, "info", "a"), (1, "info", "b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    page = records(tmp_path)
    assert messages(page) == ["a"]
    path.write_bytes(whole)
    assert messages(records(tmp_path, after=page.next)) == ["b"]


def test_a_broken_line_is_shown_and_not_swallowed(tmp_path: Path) -> None:
    path = write(tmp_path, "learner", (0, "info", "a"))
    with path.open("a") as file:
        file.write('{"time": "2026-\n')
    write(tmp_path, "learner", (1, "info", "b"))
    page = records(tmp_path)
    assert messages(page) == ["a", 'a line that cannot be read: {"time": "2026-', "b"]
    assert page.records[1].level == "error"


def test_a_page_looks_at_no_more_than_so_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "MOST_LINES", 10)
    write(tmp_path, "learner", *((n, "info", str(n)) for n in range(25)), (30, "error", "at last"))
    page = records(tmp_path, level="error")
    assert not page.records and page.more
    page = records(tmp_path, level="error", after=records(tmp_path, level="error", after=page.next).next)
    assert messages(page) == ["at last"] and not page.more


def test_the_end_of_a_text_is_read_in_blocks_and_no_further_than_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "learner-1.log"
    monkeypatch.setattr(logfiles, "BLOCK_BYTES", 7)
    path.write_text("".join(f"line {number}\n" for number in range(100)))
    assert tail(path, 3) == "line 97\nline 98\nline 99"
    assert tail(path, 1000) == path.read_text().rstrip()
    monkeypatch.setattr(logfiles, "TAIL_BYTES", 20)
    path.write_text("\r".join(f"{percent:3d} %" for percent in range(100)))  # a progress bar: one line without an end
    assert tail(path, 10) == "\n".join([" %", " 97 %", " 98 %", " 99 %"])


@pytest.mark.parametrize("cursor", ["x", "", "12", "W10", "eyJhIjotMX0", "eyJhIjoiYiJ9", "é"])
def test_what_is_no_cursor_is_refused(tmp_path: Path, cursor: str) -> None:
    with pytest.raises(InputError, match="after: this is not a cursor"):
        records(tmp_path, after=cursor)


def test_a_cursor_into_the_middle_of_a_line_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "learner", (0, "info", "a"))
    with pytest.raises(InputError, match="after: this is not a cursor"):
        records(tmp_path, after=logfiles._cursor({"learner-1.jsonl": 5}))


@pytest.fixture
def store(home: Path) -> JobStore:
    return JobStore(Settings.load().store_url)


@pytest.fixture
async def http(home: Path, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(Settings.load(), store))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as client:
        yield client
    store.close()


async def test_rest_gives_pages_of_records_with_secrets_masked(
    http: httpx.AsyncClient, store: JobStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "marker-of-the-hub")
    job_id = running_job(store, home)
    folder = JobPaths(home, job_id).logs
    write(folder, "learner", (0, "info", "a"), (1, "warning", "asked with marker-of-the-hub"), (2, "error", "c"))
    address = f"/v1/jobs/{job_id}/logs"
    first = (await http.get(address, params={"limit": 2, "level": "warning"})).json()
    assert [each["message"] for each in first["records"]] == ["asked with ***", "c"] and first["more"] is False
    write(folder, "sampler-0", (3, "info", "d"))
    second = (await http.get(address, params={"after": first["next"]})).json()
    assert [(each["worker"], each["message"]) for each in second["records"]] == [("sampler-0", "d")]
    for params in ({"after": "x"}, {"level": "loud"}, {"limit": 0}):
        assert (await http.get(address, params=params)).status_code == 422, params
    assert (await http.get("/v1/jobs/no-abcdef/logs")).status_code == 404
    text = await http.get(address, headers={"Accept": "text/html,*/*;q=0.8"})
    assert text.headers["content-type"].startswith("text/plain"), "what a browser asks for"


def test_the_terminal_shows_the_last_records_as_lines_or_json(store: JobStore, home: Path) -> None:
    job_id = running_job(store, home)
    store.transition(job_id, JobState.SUCCEEDED)
    write(JobPaths(home, job_id).logs, "learner", *((n, "info", f"m{n}") for n in range(5)), (9, "error", "it broke"))

    def run(*arguments: str) -> list[str]:
        done = CliRunner().invoke(command_line, ["logs", job_id, *arguments])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    assert [line.split(" ", 2)[2] for line in run("--level", "info", "-n", "2")] == [
        "INFO     learner: m4",
        "ERROR    learner: it broke",
    ]
    assert [json.loads(line)["message"] for line in run("--json", "--level", "error")] == ["it broke"]
    assert len(run("--follow")) == 6, "the job has ended, and so does this"
