"""The job files that people start from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.api.routes.jobs import EXAMPLES as SENT
from services.jobs.load import load_job, parse_job, written_mapping
from services.jobs.memory import estimate_memory
from services.jobs.spec_checks import problems, warnings
from services.jobs.validate import validate_job

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_job_without_problems_or_warnings(path: Path) -> None:
    spec = load_job(path)
    assert list(problems(spec)) == []
    assert list(warnings(spec)) == []
    assert estimate_memory(spec, None, None).unknown


def test_the_recipe_validates_without_the_network_but_for_what_is_on_the_hub() -> None:
    path = next(path for path in EXAMPLES if path.name == "sppo-mistral-7b.yaml")
    job = validate_job(load_job(path), path.parent)
    assert [warning.split(":")[0] for warning in job.warnings] == [
        "policy.model",
        "scorer.model.model",
        "prompts.source",
        "evaluation.prompts.source",
    ]
    assert all("taken for a name on the hub" in warning for warning in job.warnings)
    assert job.spec.objective.beta == 1 / 1000
    assert (job.spec.schedule.schedule_epochs, job.spec.schedule.stop_after_epochs) == (18, 1)


def test_the_jobs_of_the_readme_and_of_the_openapi_document_are_jobs_without_problems_or_warnings() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for data in (written_mapping(shown), *(example["value"] for example in SENT.values())):
        spec = parse_job(data)
        assert list(problems(spec)) == []
        assert list(warnings(spec)) == []
