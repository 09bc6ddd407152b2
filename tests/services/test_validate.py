"""What validation resolves, counts, warns of and estimates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import CHATML_TEMPLATE, job, write_adapter, write_model, write_prompts, write_world

from learner.errors import InputError
from services.jobs import spec_checks
from services.jobs.crew import Crew
from services.jobs.layout import JobPaths
from services.jobs.load import parse_job
from services.jobs.machine import Machine
from services.jobs.memory import adapter_parameters
from services.jobs.model_files import read_model
from services.jobs.paths import resolve_paths
from services.jobs.prompts import read_prompts
from services.jobs.validate import ValidatedJob, validate_job
from workers.learner import LearnerWorker


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_checks, "offered_functions", lambda: ("length", "rubric"))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path)


def validated(world: Path, **sections: Any) -> ValidatedJob:
    return validate_job(parse_job(job(**sections)), world)


def test_a_good_job_is_resolved_and_its_resolution_is_a_job_that_resolves_to_itself(world: Path) -> None:
    result = validated(world, evaluation={"prompts": {"source": "held-out.jsonl"}, "count": 6})
    assert result.warnings == ()
    assert result.spec.policy.model == str(world / "policy")
    assert (result.spec.policy.dtype, result.spec.policy.max_context_tokens) == ("float32", 128)
    assert result.spec.objective.reference == "round"
    assert (result.spec.resources.sampler.lora_slots, result.spec.resources.sampler.cpu_lora_slots) == (2, 4)
    assert (result.prompts.prompts, result.prompts.evaluation_prompts, result.prompts.longest_tokens) == (20, 6, 27)
    assert result.prepared is not None and len(result.prepared) == 20
    assert result.evaluation is not None and len(result.evaluation) == 6
    again = validate_job(parse_job(json.loads(result.spec.model_dump_json())), Path("/"))
    assert again.spec == result.spec


def test_online_jobs_take_the_behaviour_as_sppos_reference_and_more_slots(world: Path) -> None:
    spec = validated(world, schedule={"mode": "online", "max_staleness": 2}).spec
    assert spec.objective.reference == "behaviour"
    sampler = spec.resources.sampler
    assert (sampler.lora_slots, sampler.cpu_lora_slots, sampler.chat_slots) == (6, 12, 2), (
        "four versions, and two for chat"
    )


@pytest.mark.parametrize(
    ("given", "chat"), [({"lora_slots": 4}, 0), ({"lora_slots": 5}, 1), ({"chat_slots": 0}, 0), ({"chat_slots": 5}, 5)]
)
def test_chat_gets_what_an_online_jobs_slots_leave(world: Path, given: dict[str, int], chat: int) -> None:
    spec = validated(world, schedule={"mode": "online", "max_staleness": 2}, resources={"sampler": given}).spec
    assert spec.resources.sampler.chat_slots == spec.chat_slots == chat
    assert spec.resources.sampler.lora_slots == 4 + chat == spec.live_adapters
    again = validate_job(parse_job(json.loads(spec.model_dump_json())), Path("/"))
    assert again.spec == spec


def test_a_deterministic_jobs_samplers_take_no_chat(world: Path) -> None:
    assert validated(world).spec.resources.sampler.chat_slots == 0


def test_an_opponent_has_a_slot_of_its_own(world: Path) -> None:
    sampler = validated(world, objective={"kind": "dpo"}, sampling={"opponent": "start"}).spec.resources.sampler
    assert (sampler.lora_slots, sampler.cpu_lora_slots) == (3, 6)


def test_domains_are_counted(world: Path) -> None:
    rows = [{"prompt": f"hello {n}", "domain": "a" if n < 12 else "b"} for n in range(20)]
    (world / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert validated(world).prompts.domains == (("a", 12), ("b", 8))


@pytest.mark.parametrize(
    ("sections", "beginning"),
    [
        (
            {"sampling": {"temperature": 0.7, "top_p": 0.9}},
            "sampling.temperature: 0.7, top_p: 0.9: SPPO's win probabilities",
        ),
        ({"scorer": {"shuffle": True}}, "scorer.shuffle: true permutes"),
        ({"output": {"keep_versions": "best-and-newest"}}, "output.keep_versions: best-and-newest has no best"),
        (
            {"evaluation": {"prompts": {"source": "held-out.jsonl"}, "count": 7}},
            "evaluation.count: 7 is more than the 6 held-out",
        ),
        (
            {"evaluation": {"prompts": {"source": "held-out.jsonl"}, "count": 6, "gold": "length"}},
            "evaluation.gold: length is the scorer itself",
        ),
        ({"resources": {"queue": {"max_bytes": 65536}}}, "resources.queue.max_bytes: 8 waiting groups of 5 answers"),
    ],
)
def test_what_is_seldom_meant_is_warned_of(sections: dict[str, Any], beginning: str, world: Path) -> None:
    if "queue" in str(sections):
        sections = {**sections, "sampling": {"max_tokens": 100, "answers": 5}, "prompts": {"too_long": "truncate"}}
    warnings = validated(world, **sections).warnings
    assert [warning for warning in warnings if warning.startswith(beginning)], warnings


def test_an_unknown_family_is_warned_of_and_a_template_that_writes_the_date_too(world: Path) -> None:
    write_model(world / "policy", CHATML_TEMPLATE + "{{ strftime_now('%Y') }}", architectures=["CohereForCausalLM"])
    first, second = validated(world).warnings
    assert first.startswith("policy.model: CohereForCausalLM is not among the families")
    assert second.startswith("policy.model: its chat template may write today's date")


def test_the_same_text_under_another_id_is_warned_of(world: Path) -> None:
    write_prompts(world / "held-out.jsonl", 3, start=100, text="hello 1")
    (warning,) = validated(world, evaluation={"prompts": {"source": "held-out.jsonl"}, "count": 3}).warnings
    assert warning == "evaluation.prompts: 3 of 3 have the text of a training prompt, under another id"


def test_a_start_adapter_that_fits_is_taken(world: Path) -> None:
    write_adapter(world / "start")
    assert validated(world, policy={"adapter": "start"}).spec.policy.adapter == str(world / "start")


def test_a_model_without_tokenizer_file_is_left_to_the_deep_validation(world: Path) -> None:
    (world / "policy" / "tokenizer.json").unlink()
    result = validated(world)
    assert result.prepared is None and result.prompts.prompts == 20
    assert result.warnings[0].startswith("policy.model: it has no tokenizer.json; its prompts are rendered with --deep")


def test_deep_validation_compares_the_rendering_with_transformers(world: Path) -> None:
    spec = parse_job(job())
    assert validate_job(spec, world, deep=True).prepared == validate_job(spec, world).prepared
    path = world / "policy" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(
        InputError, match=r"transformers renders prompt 'p0' to other token ids than tokenizer.json does"
    ):
        validate_job(spec, world, deep=True)


async def test_the_learner_compares_as_it_starts_what_the_controller_left_to_it(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.process_tree.guard", lambda: None)  # this process outlives the worker
    path = world / "policy" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    result = validate_job(parse_job(job()), world, deep=True, compare_rendering=False)
    assert result.prepared is not None
    crew = Crew(
        "job", result.spec, JobPaths(world, "job"), prompts=result.prepared.token_ids, uncompared=result.uncompared
    )
    learner = LearnerWorker(*crew.learner.arguments)
    with pytest.raises(
        InputError, match=r"policy.model: transformers renders prompt 'p0' to other token ids than tokenizer.json does"
    ):
        await learner.start()


def test_prompts_with_the_date_are_compared_on_the_day_that_they_are_rendered(world: Path) -> None:
    assert len(validate_job(parse_job(job()), world, deep=True, compare_rendering=False).uncompared) == 8
    write_model(world / "policy", "{{ strftime_now('%d') }}" + CHATML_TEMPLATE)
    result = validate_job(parse_job(job()), world, deep=True, compare_rendering=False)
    assert result.prepared is not None and result.uncompared == ()
    path = world / "policy" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(InputError, match=r"transformers renders prompt 'p0' to other token ids"):
        validate_job(parse_job(job()), world, deep=True, compare_rendering=False)


def test_deep_validation_says_when_the_hub_cannot_be_reached(world: Path) -> None:
    with pytest.raises(
        InputError, match=r"policy.model: nobody/nothing could not be fetched from the Hugging Face hub"
    ):
        validate_job(parse_job(job(policy={"model": "nobody/nothing"})), world, deep=True)


def test_paths_of_a_job_over_rest_stay_inside_the_configured_roots(world: Path) -> None:
    spec = parse_job(job())
    inside = resolve_paths(spec, world, [world])
    assert inside.prompts.source == str(world / "prompts.jsonl")
    elsewhere = world.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (world / "link").symlink_to(elsewhere)
    write_prompts(elsewhere / "p.jsonl", 1)
    for source in ("link/p.jsonl", "../elsewhere/p.jsonl", str(elsewhere / "p.jsonl"), "~/p.jsonl"):
        with pytest.raises(InputError, match=r"prompts.source: .* lies outside the folders that jobs may read"):
            resolve_paths(parse_job(job(prompts={"source": source})), world, [world])
    with pytest.raises(InputError, match="none are configured"):
        resolve_paths(spec, world, [])


def test_a_link_keeps_its_name_where_that_says_how_the_file_is_read(
    world: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_prompts(world / "prompts.jsonl", 4).rename(world / "0a1b2c")
    (world / "prompts.jsonl").symlink_to("0a1b2c")
    (world / "linked").symlink_to(world)
    for source in ("prompts.jsonl", "linked/prompts.jsonl"):
        spec = parse_job(job(prompts={"source": source}))
        resolved = resolve_paths(spec, world, [world])
        assert resolved.prompts.source == str(world / "prompts.jsonl")
        assert resolve_paths(resolved, Path("/")) == resolved
        assert len(read_prompts(resolved.prompts)) == 4
    elsewhere = tmp_path_factory.mktemp("outside")
    (elsewhere / "out.jsonl").symlink_to(world / "0a1b2c")  # its owner could let it point anywhere later
    (elsewhere / "secret").write_text("{}")
    (world / "in.jsonl").symlink_to(elsewhere / "secret")
    (world / "over.jsonl").symlink_to(elsewhere / "out.jsonl")
    with pytest.raises(InputError, match=r"prompts.source: over.jsonl leads over other links to .*/0a1b2c"):
        resolve_paths(parse_job(job(prompts={"source": "over.jsonl"})), world, [world])
    for source in (str(elsewhere / "out.jsonl"), "in.jsonl"):
        with pytest.raises(InputError, match=r"prompts.source: .* lies outside the folders that jobs may read"):
            resolve_paths(parse_job(job(prompts={"source": source})), world, [world])


# ---- the estimate of memory ----------------------------------------------------------------------------------------------------


def test_shapes_give_the_number_of_weights_with_and_without_the_tensors(world: Path) -> None:
    model = read_model(world / "policy")
    (world / "policy" / "model.safetensors").unlink()
    without = read_model(world / "policy")
    assert model.linear_layers == without.linear_layers
    assert model.linear_names == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert model.parameters == without.parameters + 64 == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64) + 300 * 64 + 64


def test_an_adapter_has_rank_times_inputs_and_outputs(world: Path) -> None:
    model = read_model(world / "policy")
    spec = parse_job(job(adapters={"target_modules": ["q_proj", "down_proj"]}))
    assert adapter_parameters(spec, model, 8) == 2 * 8 * ((64 + 64) + (64 + 96))


def test_the_estimate_adds_up_and_names_what_it_does_not_know(world: Path) -> None:
    job_here = validated(world, resources={"sampler": {"count": 2, "cpus": 0.5}})
    memory = job_here.memory
    assert memory.unknown == ()
    assert memory.total("main memory") == sum((item.size or 0) * item.count for item in memory.items)
    assert memory.total("GPU") == 0
    hub = validate_job(parse_job(job(policy={"model": "nobody/nothing"})), world)
    assert "sampler: weights" in hub.memory.unknown and "learner: weights" in hub.memory.unknown


def test_a_job_too_big_for_the_machine_is_warned_of(world: Path) -> None:
    small = Machine(cpus=2, gpus=0, memory_bytes=10**9)
    (warning,) = validate_job(parse_job(job()), world, machine=small).warnings
    assert warning.startswith("resources: the workers take about ") and warning.endswith("and this machine has 1.0 GB")
