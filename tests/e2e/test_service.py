"""The service end to end: a job over REST, watched by server-sent events, with samples, metrics, versions and a download that loads."""

from __future__ import annotations

import re
import signal
import zipfile
from collections import Counter
from pathlib import Path

import httpx
import pytest

from services.client import ApiError, Client
from services.jobs.logfiles import LogRecord
from services.jobs.state import JobState
from services.jobs.trace import STAGES, Span
from tests.e2e.world import Command, World, job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Service:
    """`sparring serve` on a free port."""

    def __init__(self, world: World, log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.command = Command(
                "serve", "--port", "0", output=file, SPARRING_DATA_ROOTS=str(world.root), PYTHONUNBUFFERED="1"
            )
        found = wait_for(lambda: re.search(r"answers at (http://\S+)", log.read_text()), "the service to answer")
        self.url = found.group(1)

    def stop(self) -> int:
        self.command.interrupt(signal.SIGTERM)
        return self.command.wait(180).code


def test_a_job_over_rest_outlives_a_restart_of_the_service_and_the_next_one_is_cancelled(
    world: World, tmp_path: Path
) -> None:
    first = Service(world, tmp_path / "first.log")
    with Client(first.url) as client:
        with pytest.raises(ApiError) as refused:
            client.submit(job(world, schedule={"rounds": 0}))
        assert refused.value.status == 422 and "schedule.rounds" in str(refused.value)
        with pytest.raises(ApiError) as outside:
            client.submit(job(world, prompts={"source": "/etc/passwd.jsonl"}))
        assert outside.value.status == 422

        spec = job(world, schedule={"rounds": 4})
        submitted = client.submit(spec, idempotency_key="once")
        assert client.submit(spec, idempotency_key="once").id == submitted.id
        wait_for(lambda: (client.get(submitted.id).current_version or 0) >= 1, "version 1")
    assert first.stop() == 0, first.log.read_text()
    assert first.command.leaves_nothing()

    second = Service(world, tmp_path / "second.log")
    try:
        with Client(second.url) as client:
            what_the_job_left_is_there(client, submitted.id, world, tmp_path)
            every_stage_was_measured(client, submitted.id)
            its_logs_and_its_trace_are_whole(client, submitted.id)
            the_next_job_is_cancelled_while_its_workers_start(client, world)
        prometheus = httpx.get(f"{second.url}/metrics", timeout=60).text
        assert 'sparring_jobs{state="succeeded"} 1.0' in prometheus
        assert httpx.get(f"{second.url}/readyz", timeout=60).status_code == 200
        problem = httpx.get(f"{second.url}/v1/jobs/none", timeout=60)
        assert problem.status_code == 404 and problem.headers["content-type"] == "application/problem+json"
    finally:
        code = second.stop()
    assert code == 0, second.log.read_text()
    assert second.command.leaves_nothing()


def what_the_job_left_is_there(client: Client, job_id: str, world: World, folder: Path) -> None:
    """Follow the job to its end; then its events, versions, metrics and samples, and a version that loads with plain peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    events = list(client.events(job_id))
    for kind in ("version_published", "evaluated"):
        assert {event.data["version"] for event in events if event.kind == kind} == set(range(5)), kind
    assert events[-1].kind in ("state", "counts")

    ended = client.get(job_id)
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert ended.progress == 1 and ended.current_version == 4
    assert [version.version for version in client.versions(job_id)] == list(range(5)), "none twice, none missing"
    assert {"loss", "win_rate", "queue_ready_groups"} <= client.metrics(job_id).keys()

    page = client.samples(job_id, version=1, limit=5)
    assert len(page.samples) == 5
    for sample in page.samples:
        matrix = sample.win_matrix
        assert matrix is not None and len(matrix) == 3
        assert all(abs(matrix[i][j] + matrix[j][i] - 1) < 1e-9 for i in range(3) for j in range(3))
        assert {answer.version for answer in sample.answers} == {1}

    archive = client.download(job_id, 2, folder / "v2.zip")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder / "v2")
    adapter = next((folder / "v2").rglob("adapter_config.json")).parent
    base = AutoModelForCausalLM.from_pretrained(world.policy)
    ids = torch.tensor([[257, 10, 20, 30]])
    before = base(input_ids=ids).logits
    assert not torch.allclose(before, PeftModel.from_pretrained(base, adapter)(input_ids=ids).logits)


def every_stage_was_measured(client: Client, job_id: str) -> None:
    """The job's metrics have what every part of it said, vLLM included, for Prometheus to read while it runs."""
    newest = {name: points[-1].value or 0.0 for name, points in client.metrics(job_id).items()}
    assert newest["vllm:generation_tokens_total{worker=sampler-0}"] > 0
    assert newest["sync_bytes_total{worker=sampler-0}"] >= 0
    assert newest["sampler_state{worker=sampler-0}"] in (1, 2), (
        "stale or ready: a short job may have ended before the next look"
    )
    assert newest["groups_admitted_total"] >= newest["groups_consumed_total"] >= 12
    for stage, worker in (("sampler", "sampler-0"), ("scorer", "scorer-0"), ("learner", "learner")):
        busy, waiting = (
            newest[f"worker_{what}_seconds_total{{stage={stage},worker={worker}}}"] for what in ("busy", "waiting")
        )
        assert busy >= 0 and busy + waiting > 0, worker


def its_logs_and_its_trace_are_whole(client: Client, job_id: str) -> None:
    """Every worker's records are there in the order of time, and every group that was learned from has passed every stage."""
    found, after = list[LogRecord](), None
    while (page := client.log_records(job_id, after=after)).records:
        found += page.records
        after = page.next
    assert {record.worker for record in found} >= {
        "controller",
        "queue",
        "versions",
        "learner",
        "scorer-0",
        "sampler-0",
    }
    assert {record.job_id for record in found} == {job_id} and any("succeeded" in record.message for record in found)

    spans, cursor = list[Span](), None
    while True:
        part = client.trace(job_id, after=cursor)
        spans += part.spans
        cursor = part.next
        if cursor is None:
            break
    stages = Counter(span.name for span in spans if span.attributes["state"] == "consumed")
    assert stages["group"] > 0 and set(stages.values()) == {stages["group"]} and set(stages) == {"group", *STAGES}
    assert {span.worker for span in spans if span.name == "sampling"} >= {"sampler-0"}


def the_next_job_is_cancelled_while_its_workers_start(client: Client, world: World) -> None:
    job_id = client.submit(job(world, seed=8)).id
    wait_for(lambda: any(event.kind == "prompts" for event in client.events_page(job_id).events), "the job to start")
    client.cancel(job_id)
    wait_for(lambda: client.get(job_id).state is JobState.CANCELLED, "the cancel", 180)
