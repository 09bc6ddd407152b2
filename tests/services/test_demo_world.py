from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from learner.errors import InputError
from services.cli.main import app
from services.demo.domain import UNSEEN_TOPIC, read_question
from services.demo.job import demo_spec
from services.demo.world import DemoWorld, WorldRecipe, ensure_world
from services.jobs.crew import Crew
from services.jobs.layout import JobPaths
from services.jobs.machine import Machine
from services.jobs.placement import demands
from services.jobs.spec import JobSpec
from services.jobs.spec_checks import machine_problems, problems, warnings
from workers.capacity import Node, check_capacity

TINY = WorldRecipe(
    policy_steps=2, sampled_prompts=8, sampled_answers=2, template_pairs=200, scorer_steps=2, tested_prompts=8
)
pytestmark = pytest.mark.slow


def build(home: Path, seed: int = 0) -> tuple[DemoWorld, dict[str, tuple[int, int]]]:
    """A tiny world, and the last progress of every stage."""
    stages: dict[str, tuple[int, int]] = {}
    world = ensure_world(home, seed, lambda stage, done, total: stages.update({stage: (done, total)}), TINY)
    return world, stages


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> DemoWorld:
    built, stages = build(tmp_path_factory.mktemp("home"))
    assert len(stages) >= 4 and all(done == total for done, total in stages.values())
    return built


def test_a_second_call_takes_the_cached_world(world: DemoWorld) -> None:
    again, stages = build(world.root.parent.parent)
    assert again == world and not stages
    assert [path.name for path in world.root.parent.iterdir()] == [world.root.name]


def test_the_same_seed_builds_the_same_weights(world: DemoWorld, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    other, _ = build(tmp_path)
    assert torch.get_num_threads() == threads
    files = ["policy/model.safetensors", "policy/tokenizer.json", "pairrm/model.safetensors", "pairrm/tokenizer.json"]
    for name in (*files, "prompts_train.jsonl", "prompts_eval.jsonl", "prompts_unseen.jsonl", "world.json"):
        assert (world.root / name).read_bytes() == (other.root / name).read_bytes(), name


def test_a_failed_building_leaves_nothing(tmp_path: Path) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        raise InputError("stop")

    with pytest.raises(InputError):
        ensure_world(tmp_path, 0, fail, TINY)
    assert not list((tmp_path / "demo").iterdir())


def test_the_tokenizer_is_readable_without_transformers_and_writes_short_prompts(world: DemoWorld) -> None:
    tokenizer = Tokenizer.from_file(str(world.policy / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 512
    questions = [json.loads(line)["prompt"] for line in world.prompts_train.read_text().splitlines()]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(questions)]
    assert max(lengths) <= 45
    assert tokenizer.decode(tokenizer.encode("Grüße 😀").ids) == "Grüße 😀"


def test_the_policy_has_a_head_size_that_vllm_serves_and_one_end_token(world: DemoWorld) -> None:
    config = json.loads((world.policy / "config.json").read_text())
    assert config["hidden_size"] // config["num_attention_heads"] == 32
    assert config["eos_token_id"] == Tokenizer.from_file(str(world.policy / "tokenizer.json")).token_to_id("<eos>")


def test_prompt_files_hold_the_fields_that_a_job_reads(world: DemoWorld) -> None:
    sizes = {}
    for path in (world.prompts_train, world.prompts_eval, world.prompts_unseen):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        sizes[path.name] = len(rows)
        assert all(read_question(row["prompt"]) and row["id"] and row["domain"] for row in rows)
        assert {row["domain"] == UNSEEN_TOPIC for row in rows} == {path == world.prompts_unseen}
    assert sizes["prompts_eval.jsonl"] >= 256 and sizes["prompts_unseen.jsonl"] >= 256


def test_the_demo_job_passes_its_checks_on_two_cores(world: DemoWorld) -> None:
    spec = demo_spec(world, seed=0, rounds=5, name="demo")
    machine = Machine(cpus=2, gpus=0, memory_bytes=8 << 30)
    assert not [*problems(spec), *machine_problems(spec, machine), *warnings(spec)]


def test_on_a_gpu_the_demo_job_passes_its_checks_too_and_its_workers_share_one_card(world: DemoWorld) -> None:
    spec = demo_spec(world, seed=0, rounds=5, name="demo", gpu=True)
    machine = Machine(cpus=2, gpus=1, memory_bytes=8 << 30)
    assert not [*problems(spec), *machine_problems(spec, machine), *warnings(spec)]
    check_capacity(
        demands(Crew("demo", spec, JobPaths(Path("/nowhere"), "demo"), prompts=()).bundles), [Node(2.0, 1.0)]
    )


def test_the_demo_prints_its_job_for_a_service_elsewhere(
    world: DemoWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARRING_HOME", str(tmp_path))
    monkeypatch.setattr("services.demo.world.ensure_world", lambda *_: world)
    printed = CliRunner().invoke(app, ["demo", "--print-job", "--rounds", "2"])
    assert printed.exit_code == 0, printed.output
    assert JobSpec.model_validate_json(printed.stdout) == demo_spec(world, seed=0, rounds=2, name="demo")
    assert "World: " in printed.stderr
