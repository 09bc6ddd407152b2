"""The command line: light, and plain about what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_models import job, write_world
from typer.testing import CliRunner

from learner.errors import InputError
from services.cli.main import app, main
from services.jobs.load import parse_job
from services.jobs.spec import JobSpec

HEAVY = ("torch", "transformers", "peft", "ray", "vllm", "datasets", "llm_blender")

SCRIPT = f"""
import sys
from services.cli.main import main
sys.argv[0] = "sparring"
try:
    main()
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("LOADED", loaded, file=sys.stderr)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_world(tmp_path)
    data = job()
    data["scorer"] = {}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def sparring(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=120)


def test_help_validate_and_errors_import_nothing_heavy(file: Path) -> None:
    bad = file.with_name("bad.yaml")
    bad.write_text(file.read_text().replace("rounds: 2", "rounds: 0"))
    for arguments, code in (
        (["--help"], 0),
        (["--version"], 0),
        (["schema"], 0),
        (["validate", str(file)], 0),
        (["validate", str(bad)], 2),
    ):
        done = sparring(*arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[-1] == "LOADED []", done.stderr


def test_a_bad_job_ends_with_its_sentence_and_code_2(file: Path) -> None:
    file.write_text(file.read_text().replace("rounds: 2", "rounds: '[red]'"))
    done = sparring("validate", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == 'Error: schedule.rounds: "[red]" is not a whole number'


def test_main_says_bad_input_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise InputError("resources.x: [bold] is not allowed")

    monkeypatch.setattr("services.cli.main.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: resources.x: [bold] is not allowed\n"


def test_validate_prints_the_resolved_job_as_yaml_and_the_rest_beside_it(file: Path) -> None:
    done = CliRunner().invoke(app, ["validate", "--cluster", str(file)])
    assert done.exit_code == 0, done.output
    spec = parse_job(yaml.safe_load(done.stdout))
    assert spec.policy.model == str(file.parent / "policy")
    assert "Memory, estimated" in done.stderr and "Prompts: 20; the longest" in done.stderr
    assert "Warning: scorer.model.model: llm-blender/PairRM-hf is taken for a name on the hub" in done.stderr


def test_validate_prints_json(file: Path) -> None:
    done = CliRunner().invoke(app, ["validate", "--cluster", "--json", str(file)])
    data = json.loads(done.stdout)
    assert parse_job(data["spec"]).name == "job"
    assert data["prompts"]["prompts"] == 20
    assert data["memory"]["main_memory_bytes"] > 10**9
    assert len(data["warnings"]) == 1


def test_the_schema_documents_every_field() -> None:
    done = CliRunner().invoke(app, ["schema"])
    schema = json.loads(done.stdout)
    assert schema == JobSpec.model_json_schema()
    sections = {**schema["$defs"], "job": schema}
    bare = [
        f"{name}.{field}"
        for name, section in sections.items()
        for field, entry in section.get("properties", {}).items()
        if not {"description", "const", "$ref"} & entry.keys()
    ]
    assert bare == []
    assert [name for name, section in sections.items() if "description" not in section] == []
