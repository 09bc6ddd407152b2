"""The job files that people start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.jobs.load import load_job
from services.jobs.memory import estimate_memory
from services.jobs.spec_checks import problems, warnings
from services.jobs.validate import validate_job

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


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
