"""The OpenAPI document: complete, and true of a real service, by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_world import SPEC, fill_ledger, job_with_domains, publish, running_job, service
from test_chat_api import Scribe

from services.api.routes.files import LOG_EXAMPLE
from services.jobs.layout import JobPaths
from services.jobs.logfiles import LogPage, LogRecord
from services.jobs.records import JobError, Preference
from services.jobs.spec import JobSpec
from services.jobs.state import JobState
from services.jobs.store import JobStore
from services.settings import Settings

NOT_ASKED = (
    "positive_data_acceptance",
    "ensure_resource_availability",
    "use_after_free",
    "object_level_authorization",
    "ignored_auth",
)
"""Whether well-formed data is taken depends on what it says (a job that names a file which is not there); keys have tests of their own."""

SEARCH_LIMIT_SECONDS = 240
EXAMPLES = 10
"""Of each operation, beside the examples that the document gives and the boundaries of its schemas."""


@pytest.fixture
def jobs(home: Path) -> Iterator[tuple[JobStore, list[str]]]:
    """Jobs in several states, with samples, versions, metrics, preferences, logs and a report."""
    store = JobStore(Settings.load().store_url)
    learning = running_job(store, home, feedback={"share": 0.25}, objective={"kind": "dpo"})
    fill_ledger(home, learning, 5, consumed=2)
    publish(home, learning, 0)
    store.add_version(learning, 0, digest="d", learner_step=0)
    store.add_metrics(learning, {"loss": 0.5, "odd": float("nan")}, version=1, learner_step=1)
    store.add_preferences(learning, [Preference(prompt="a?", chosen="b", rejected="c")])
    paths = JobPaths(home, learning)
    paths.logs.mkdir(parents=True)
    (paths.logs / "learner-1.log").write_text("a line\n")
    (paths.logs / "learner-1.jsonl").write_text(
        LogRecord.model_validate(LOG_EXAMPLE["records"][0]).model_dump_json() + "\n"
    )
    paths.report.parent.mkdir(parents=True, exist_ok=True)
    paths.report.write_text("<p>curves</p>")
    failed = running_job(store, home)
    store.transition(failed, JobState.FAILED, error=JobError(code="canary", message="two samplers were fenced"))
    done = running_job(store, home)
    store.transition(done, JobState.SUCCEEDED)
    queued = store.create(JobSpec.model_validate(SPEC), home=home).id
    yield store, [learning, failed, done, queued, job_with_domains(store, home)]
    store.close()


@pytest.fixture
def document(jobs: tuple[JobStore, list[str]]) -> dict[str, Any]:
    with service(Settings.load(), jobs[0]) as url:
        found: dict[str, Any] = httpx.get(f"{url}/v1/openapi.json", timeout=60).json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_operation_says_what_it_does_needs_and_refuses(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for name, operation in operations(document):
        assert operation["summary"] and operation["description"] and operation["tags"], name
        if name in ("GET /healthz", "GET /readyz"):
            continue
        assert "Needs the scope `" in operation["description"], name
        assert operation["security"] == [{}, {"key": []}], name
        answers = operation["responses"]
        assert {"400", "401", "403", "429", "503"} <= set(answers), name
        assert ("404" in answers) >= ("{" in name), name
        for status, answer in answers.items():
            assert answer["description"], (name, status)


def test_no_reference_of_the_document_leads_nowhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for each in node.values():
                yield from references(each)
        elif isinstance(node, list):
            for each in node:
                yield from references(each)

    found = set(references(document))
    assert "#/components/schemas/Problem" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference


def test_jobs_preferences_and_problems_have_examples_that_hold(document: dict[str, Any]) -> None:
    bodies = {
        address: document["paths"][address]["post"]["requestBody"]["content"]["application/json"]
        for address in ("/v1/jobs", "/v1/jobs/{job_id}/preferences")
    }
    examples = [each["value"] for each in bodies["/v1/jobs"]["examples"].values()]
    assert examples
    for example in examples:
        JobSpec.model_validate(example)
    (preferences,) = bodies["/v1/jobs/{job_id}/preferences"]["schema"]["examples"]
    for preference in preferences:
        Preference.model_validate(preference)
    logs = document["paths"]["/v1/jobs/{job_id}/logs"]["get"]["responses"]["200"]["content"]
    LogPage.model_validate(logs["application/json"]["example"])
    problem = document["paths"]["/v1/jobs"]["post"]["responses"]["422"]["content"]["application/problem+json"]
    assert problem["example"]["errors"] == [
        {"param": "schedule.rounds", "detail": "0 is too small, it must be at least 1"}
    ]


def test_schemathesis_finds_no_server_error_and_nothing_undocumented(
    jobs: tuple[JobStore, list[str]], tmp_path: Path
) -> None:
    store, ids = jobs
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(
        "[checks]\n"
        + "".join(f"{name}.enabled = false\n" for name in NOT_ASKED)
        + f"[dictionaries.jobs]\nvalues = {json.dumps([*ids, 'none-abcdef'])}\n"
        '[parameters]\n"path.job_id" = {dictionary = "jobs", probability = 0.9}\n'
        '"path.model" = {dictionary = "jobs", probability = 0.9}\n'
        # every text is a metric's name, so what schemathesis takes for a wrong one is none once it stands in an address
        '[[operations]]\ninclude-path = "/v1/jobs/{job_id}/metrics"\nchecks.negative_data_rejection.enabled = false\n'
    )
    settings = Settings.load().model_copy(update={"rate_limit": "1000000/minute"})
    with service(settings, store, samplers=Scribe()) as url:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            *("--config-file", str(configuration), "run", f"{url}/v1/openapi.json"),
            # by examples and not by time, so that the same are tried on every machine
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--request-timeout", "60"),
            *("--workers", "1", "--generation-database", "none", "--no-color", "--seed", "1"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SEARCH_LIMIT_SECONDS, cwd=tmp_path, check=False
        )
    print(done.stdout)  # its summary, with `pytest -s`
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
