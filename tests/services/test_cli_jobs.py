"""The commands about jobs, on the local store and through a service."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from job_world import DOMAINS, SPEC, job_with_domains, running_job, service
from typer.testing import CliRunner, Result

from learner.errors import InputError
from services.cli.main import app
from services.jobs.layout import JobPaths
from services.jobs.records import JobError
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("SPARRING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARRING_PORT", str(port))  # where nothing answers
    monkeypatch.delenv("SPARRING_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> JobStore:
    return JobStore(Settings.load().store_url)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """The sentence with which a command refuses."""
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_without_a_service_the_store_here_is_read(home: Path, store: JobStore) -> None:
    assert "No jobs yet" in run("list").output
    job = store.create(JobSpec.model_validate(SPEC), home=home, runner="command")
    rates = {"win_rate": 0.5, "length_controlled_win_rate": 0.4375}
    store.add_version(job.id, 0, digest="abcdef0123456789", learner_step=0, metrics=rates)
    store.mark_best(job.id, 0)
    store.add_metrics(job.id, {"loss": 0.25})
    listed = run("list").output
    assert job.id in listed and "queued" in listed and "v0" in listed
    assert json.loads(run("list", "--json").output)[0]["id"] == job.id
    assert run("list", "--state", "failed").output == "No such jobs.\n"
    shown = run("show", job.id).output
    assert "loss" in shown and "0.25" in shown and "abcdef012345" in shown and "best" in shown
    assert "length_controlled_win_rate" in shown and "0.4375" in shown
    assert json.loads(run("show", job.id, "--json").output)["spec"]["name"] == "demo"
    assert "queued" in run("logs", job.id, "--events").output
    assert "has no logs yet" in run("logs", job.id).output
    folder = JobPaths(home, job.id).logs
    folder.mkdir(parents=True)
    (folder / "learner-1.log").write_text("one\ntwo\n")
    assert run("logs", job.id, "-n", "1").output == "==> learner-1.log <==\ntwo\n"
    assert "is cancelled" in run("cancel", job.id).output
    assert store.get(job.id).state is JobState.CANCELLED
    assert "there is no job 'no-abcdef'" in refused("show", "no-abcdef")
    assert "already cancelled" in refused("cancel", job.id)


def test_a_job_with_domains_shows_its_win_rates_after_each_and_their_averages(home: Path, store: JobStore) -> None:
    shown = run("show", job_with_domains(store, home, gold=True)).output
    after = next(line for line in shown.splitlines() if "v4, after late fees/eu" in line)
    assert [cell.strip() for cell in after.split("│")[2:5]] == ["70.0%", "90.0%", "45.0%"]
    assert "average win rate 80.0%, forgetting +10.0%, backward transfer -10.0%, forward transfer +5.0%" in shown
    assert "by the gold judge" in shown and DOMAINS[2] in shown and "v6, after" not in shown
    newest = next(line for line in shown.splitlines() if "[85.0%, 95.0%]" in line)
    assert "late fees/eu" in newest and "10.0% [5.0%, 15.0%]" in newest
    assert "win_rate/" not in shown
    plain = run("show", running_job(store, home)).output
    assert "by domain" not in plain and "v0, start" not in plain


def test_with_a_service_the_service_is_asked(
    home: Path, tmp_path: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(SPEC | {"policy": {"model": "./model"}, "prompts": {"source": "prompts.jsonl"}}))
    assert "no service answers" in refused("submit", str(file))
    listening = socket.create_server(("127.0.0.1", Settings.load().port))
    with service(Settings.load(), store, listening) as url:
        monkeypatch.setenv("SPARRING_PORT", "1")
        monkeypatch.setenv(
            "SPARRING_HOME", str(tmp_path / "another")
        )  # nothing below may come from a store of one's own
        job_id = run("submit", str(file), "--url", url, "--key", "k").output.strip()
        monkeypatch.setenv("SPARRING_URL", url)
        assert run("submit", str(file), "--key", "k").output.strip() == job_id
        spec = store.get(job_id).spec
        assert spec["policy"]["model"] == str(tmp_path / "model")  # type: ignore[index, call-overload]
        assert job_id in run("list").output and job_id in run("show", job_id).output
        assert "is cancelled" in run("cancel", job_id).output
        assert "attempt 2" in run("resume", job_id).output
        assert "schedule.rounds" in refused("submit", str(bad_job(tmp_path)))
        monkeypatch.delenv("SPARRING_URL")
        monkeypatch.setenv("SPARRING_PORT", url.rpartition(":")[2])
        monkeypatch.setattr("services.cli.source.ANSWER_SECONDS", 30.0)  # the machine may be busy
        assert job_id in run("list").output  # found on the default address
    assert list((tmp_path / "another").glob("**/*")) == []


def bad_job(folder: Path) -> Path:
    file = folder / "bad.yaml"
    file.write_text(yaml.safe_dump(SPEC | {"schedule": {"rounds": 0}}))
    return file


def test_something_else_on_the_default_port_is_not_asked(home: Path, store: JobStore) -> None:
    with socket.create_server(("127.0.0.1", Settings.load().port)) as other:
        silent = threading.Thread(target=lambda: [other.accept()[0].close() for _ in range(2)], daemon=True)
        silent.start()
        assert "No jobs yet" in run("list").output
        silent.join(5)


def test_watch_follows_a_job_to_its_end(home: Path, store: JobStore) -> None:
    job_id = running_job(store, home)

    def go_on() -> None:
        time.sleep(0.3)
        store.add_metrics(job_id, {"win_rate": 0.75, "loss": 0.5})
        store.append_event(job_id, "warning", "something to know")
        time.sleep(1)
        store.transition(job_id, JobState.FAILED, error=JobError(code="canary", message="two samplers were fenced"))

    worker = threading.Thread(target=go_on)
    worker.start()
    result = run("watch", job_id)
    worker.join()
    assert result.exit_code == 1
    assert "something to know" in result.output and "75.0%" in result.output
    assert "failed (canary): two samplers were fenced" in result.output


def test_help_and_lists_import_no_engine() -> None:
    code = (
        "import sys, services.cli.main\n"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'peft', 'fastapi', 'httpx', 'sqlalchemy', 'numpy'}\n"
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_a_service_off_loopback_needs_a_key(home: Path) -> None:
    assert "there must be a key" in refused("serve", "--host", "0.0.0.0")


def test_a_port_that_is_taken_is_said_before_anything_starts(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused("serve", "--port", str(port))


def test_jobs_are_listed_by_label(home: Path, store: JobStore) -> None:
    first = store.create(JobSpec.model_validate(SPEC | {"metadata": {"team": "a=b"}}), home=home).id
    second = store.create(JobSpec.model_validate(SPEC), home=home).id
    with service(Settings.load(), store) as url:
        for where in ([], ["--url", url]):
            found = run("list", "--label", "team=a=b", *where).output
            assert first in found and second not in found
    assert "--label: 'team' is not a name and a value" in refused("list", "--label", "team")


def test_a_job_is_paused_goes_on_and_is_deleted_here_and_in_a_service(home: Path, store: JobStore) -> None:
    with service(Settings.load(), store) as url:
        for where in ([], ["--url", url]):
            job_id = running_job(store, home)
            assert run("pause", job_id, *where).output == f"{job_id} is asked to pause.\n"
            assert store.take_request(job_id) == "pause"
            store.transition(job_id, JobState.PAUSED)
            assert run("resume", job_id, *where).output == f"{job_id} goes on.\n"
            assert store.take_request(job_id) == "continue"
            assert "cancel it first" in refused("delete", job_id, "--yes", *where)
            store.transition(job_id, JobState.CANCELLED)
            assert run("delete", job_id, *where).exit_code == 1  # nobody said yes
            assert run("delete", job_id, "--yes", *where).output == f"{job_id} is deleted.\n"
            assert store.list() == []
