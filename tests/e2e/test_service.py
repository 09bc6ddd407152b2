"""The service end to end: a job over REST, watched by server-sent events, with samples, metrics, versions and a download that loads."""

from __future__ import annotations

import re
import signal
import zipfile
from pathlib import Path

import httpx
import pytest

from services.client import ApiError, Client
from services.jobs.state import JobState
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


def test_a_job_over_rest_from_submission_to_download(world: World, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    service = Service(world, tmp_path / "serve.log")
    try:
        with Client(service.url) as client:
            with pytest.raises(ApiError) as refused:
                client.submit(job(world, schedule={"rounds": 0}))
            assert refused.value.status == 422 and "schedule.rounds" in str(refused.value)
            with pytest.raises(ApiError) as outside:
                client.submit(job(world, prompts={"source": "/etc/passwd.jsonl"}))
            assert outside.value.status == 422

            spec = job(world)
            submitted = client.submit(spec, idempotency_key="once")
            assert client.submit(spec, idempotency_key="once").id == submitted.id
            kinds = [event.kind for event in client.events(submitted.id)]
            assert (
                kinds.count("version_published") == 3
                and kinds.count("evaluated") == 3
                and kinds[-1] in ("state", "counts")
            )

            ended = client.get(submitted.id)
            assert ended.state is JobState.SUCCEEDED, ended.error
            assert ended.progress == 1 and ended.current_version == 2
            assert {"loss", "win_rate", "queue_ready_groups"} <= client.metrics(submitted.id).keys()

            page = client.samples(submitted.id, version=1, limit=5)
            assert len(page.samples) == 5
            for sample in page.samples:
                matrix = sample.win_matrix
                assert matrix is not None and len(matrix) == 3
                assert all(abs(matrix[i][j] + matrix[j][i] - 1) < 1e-9 for i in range(3) for j in range(3))
                assert {answer.version for answer in sample.answers} == {1}

            archive = client.download(submitted.id, 2, tmp_path / "v2.zip")
            with zipfile.ZipFile(archive) as content:
                content.extractall(tmp_path / "v2")
            adapter = next((tmp_path / "v2").rglob("adapter_config.json")).parent
            base = AutoModelForCausalLM.from_pretrained(world.policy)
            ids = torch.tensor([[257, 10, 20, 30]])
            before = base(input_ids=ids).logits
            assert not torch.allclose(before, PeftModel.from_pretrained(base, adapter)(input_ids=ids).logits)

        prometheus = httpx.get(f"{service.url}/metrics").text
        assert 'sparring_jobs{state="succeeded"} 1.0' in prometheus
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        problem = httpx.get(f"{service.url}/v1/jobs/none")
        assert problem.status_code == 404 and problem.headers["content-type"] == "application/problem+json"
    finally:
        code = service.stop()
    assert code == 0, service.log.read_text()
    assert service.command.leaves_nothing()


def test_a_restarted_service_goes_on_with_its_job_which_can_be_cancelled(world: World, tmp_path: Path) -> None:
    service = Service(world, tmp_path / "first.log")
    with Client(service.url) as client:
        submitted = client.submit(job(world, schedule={"rounds": 9}))
        wait_for(lambda: client.get(submitted.id).current_version == 1, "version 1")
    assert service.stop() == 0
    assert service.command.leaves_nothing()

    service = Service(world, tmp_path / "second.log")
    try:
        with Client(service.url) as client:
            wait_for(lambda: (client.get(submitted.id).current_version or 0) >= 3, "version 3")
            assert client.get(submitted.id).state is JobState.RUNNING
            client.cancel(submitted.id)
            wait_for(lambda: client.get(submitted.id).state is JobState.CANCELLED, "the cancel", 180)
            versions = [version.version for version in client.versions(submitted.id)]
            assert versions == list(range(len(versions))), "no version twice, none missing"
    finally:
        service.stop()
