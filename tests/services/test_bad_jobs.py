"""Bad jobs, each with the sentence that a person gets (rule 15)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import job, layer_shapes, write_adapter, write_model, write_world

from learner.errors import InputError
from learner.objectives.parameters import BUILT_IN
from services.jobs import spec_checks
from services.jobs.load import load_job, parse_job
from services.jobs.machine import Machine
from services.jobs.problems import one_of
from services.jobs.validate import validate_job

MACHINE = Machine(cpus=2, gpus=0, memory_bytes=1 << 34)


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_checks, "offered_functions", lambda: ("length", "rubric"))


def complaint(data: Any, folder: Path) -> str:
    """What a person is told about the job; their folder is left out of it."""
    with pytest.raises(InputError) as caught:
        validate_job(parse_job(data), folder, machine=MACHINE)
    return str(caught.value).replace(f"{folder.resolve()}/", "")


KINDS = one_of([str(model.model_fields["kind"].default) for model in BUILT_IN])
ONLINE = {"mode": "online", "max_staleness": 2}
BAD_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"schedule": {"rounds": 0}}, "schedule.rounds: 0 is too small; it must be at least 1"),
    ({"sampling": {"answers": 1}}, "sampling.answers: 1 is too small; it must be at least 2"),
    ({"sampling": {"top_p": 1.5}}, "sampling.top_p: 1.5 is too large; it must be at most 1"),
    ({"adapters": {"rank": 1024}}, "adapters.rank: 1024 is too large; it must be at most 512"),
    ({"adapters": {"dropout": 1}}, "adapters.dropout: 1 is too large; it must be less than 1"),
    ({"sampling": {"temprature": 1}}, "sampling.temprature: unknown key; did you mean `temperature`?"),
    ({"polcy": {}}, "polcy: unknown key; did you mean `policy`?"),
    ({"pairing": {"xyz": 1}}, "pairing.xyz: unknown key; the keys here are rule, identical, ties, tie_margin"),
    ({"objective": {"kind": "ppo"}}, f"objective.kind: \"ppo\" is not known; it must be {KINDS}"),
    ({"objective": {"beta": 1}}, f"objective: the key `kind` is missing; it must be {KINDS}"),
    ({"objective": {"kind": "dpo", "label_smoothing": 0.5}}, "objective.label_smoothing: 0.5 is too large; it must be less than 0.5"),
    (
        {"sampling": {"opponent": "version"}},
        "sampling.opponent_version: missing; opponent: version needs the number of a version",
    ),
    (
        {"sampling": {"opponent": "start", "opponent_version": 1}},
        "sampling.opponent_version: 1 does not go with opponent: start; set opponent: version, or leave it out",
    ),
    ({"optimizer": {"kind": "sgd"}}, "optimizer.kind: \"sgd\" is not known; it must be adamw or rmsprop"),
    ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate: inf is not a finite number"),
    ({"schedule": {"rounds": True}}, "schedule.rounds: true is not a number"),
    ({"schedule": {"rounds": 1.5}}, "schedule.rounds: 1.5 is not a whole number"),
    ({"schedule": {"rounds": "many"}}, "schedule.rounds: \"many\" is not a whole number"),
    ({"name": "My job"}, "name: \"My job\" is not allowed. Lower-case letters, digits and hyphens."),
    ({"name": 7}, "name: 7 must be text; put it in quotes if it is meant so"),
    ({"sampling": None}, "sampling: null must be a mapping of keys to values"),
    ({"prompts": {"source": ""}}, "prompts.source: \"\" is empty; give some text"),
    ({"prompts": {"shuffle": "maybe"}}, "prompts.shuffle: \"maybe\" is neither true nor false"),
    ({"adapters": {"target_modules": "q_proj"}}, "adapters.target_modules: \"q_proj\" does not fit; it must be all-linear or a list of text"),
    ({"scorer": {"model": {"kind": "function"}}}, "scorer.model.name: missing; it is required"),
    (
        {"schedule": {"max_staleness": 2}},
        "schedule.max_staleness: 2 does not go with mode: rounds, whose answers all come from the round's version; "
        "set max_staleness: 0 or mode: online",
    ),
    (
        {"schedule": {"mode": "online"}},
        "schedule.max_staleness: 0 does not go with mode: online; set max_staleness to 1 or more, or mode: rounds",
    ),
    (
        {"schedule": {"domains": ["a", "a"]}},
        "schedule.domains: ['a', 'a'] must name each domain once; leave it out to mix all prompts",
    ),
    (
        {"schedule": {"mode": "online", "max_staleness": 1, "domains": ["a"]}},
        "schedule.domains: a list does not go with mode: online, where one domain's answers would be learned from in the next; use mode: "
        "rounds or offline",
    ),
    ({"schedule": {"combine": "cofs"}}, "schedule.combine: cofs needs domains to combine; list them, or set combine: none"),
    (
        {"sampling": {"policy": "both", "opponent": "start"}},
        "sampling.opponent: start does not go with policy: both; an opponent plays the fast adapter: set policy: fast, or opponent: self",
    ),
    (
        {"schedule": {"stop_after_epochs": 2}},
        "schedule.stop_after_epochs: 2 is more than schedule_epochs: 1; raise schedule_epochs or lower stop_after_epochs",
    ),
    (
        {"schedule": {"prompts_per_step": 9}},
        "schedule.prompts_per_step: 9 is more than prompts_per_round: 8; a step takes its groups from one round",
    ),
]  # fmt: skip

BAD_COMBINATIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"schedule": ONLINE, "resources": {"queue": {"max_groups": 23}}},
        "resources.queue.max_groups: 23 cannot hold the 24 groups of schedule.max_staleness: 2 and schedule.prompts_per_round: 8; "
        "raise it to 24",
    ),
    (
        {"schedule": ONLINE, "resources": {"sampler": {"lora_slots": 3}}},
        "resources.sampler.lora_slots: 3 is too small for schedule.max_staleness: 2, which keeps 4 adapters in use; "
        "raise it to 4 or leave it out",
    ),
    (
        {"schedule": ONLINE, "resources": {"sampler": {"lora_slots": 5, "chat_slots": 2}}},
        "resources.sampler.lora_slots: 5 is too small for schedule.max_staleness: 2 and chat_slots: 2, which keeps 6 adapters in use; "
        "raise it to 6 or leave it out",
    ),
    (
        {"resources": {"sampler": {"chat_slots": 1}}},
        "resources.sampler.chat_slots: 1 does not go with schedule.mode: rounds, whose samplers must write the same answers again; set it to "
        "0 or leave it out, and chat gets a sampler of its own",
    ),
    (
        {"resources": {"sampler": {"cpu_lora_slots": 1}}},
        "resources.sampler.cpu_lora_slots: 1 is less than the 2 adapters that may be in use; raise it to 2 or leave it out",
    ),
    (
        {"objective": {"kind": "dpo"}, "sampling": {"opponent": "start"}, "resources": {"sampler": {"lora_slots": 2}}},
        "resources.sampler.lora_slots: 2 is too small for schedule.max_staleness: 0 and sampling.opponent: start, which keeps 3 adapters in "
        "use; raise it to 3 or leave it out",
    ),
    (
        {"objective": {"kind": "dpo"}, "sampling": {"opponent": "slow"}},
        "sampling.opponent: slow needs a slow adapter, and adapters.slow is off; set it to chase or average",
    ),
    (
        {"objective": {"kind": "dpo"}, "sampling": {"policy": "both"}},
        "sampling.policy: both needs a slow adapter, and adapters.slow is off; set it to chase or average",
    ),
    (
        {"objective": {"kind": "dpo", "reference": "slow"}},
        "objective.reference: slow needs a slow adapter, and adapters.slow is off; set it to chase or average",
    ),
    (
        {"objective": {"kind": "dpo"}, "adapters": {"slow": "chase"}},
        "adapters.slow: chase trains two adapters by objective.kind: chase, not dpo; put a pairwise objective inside it (objective: {kind: "
        "chase, inner: {kind: dpo}}), or set adapters.slow: average",
    ),
    (
        {"objective": {"kind": "chase", "reference": "slow"}, "adapters": {"slow": "chase"}},
        "objective.reference: slow does not go with adapters.slow: chase, whose slow adapter would be trained against itself; use start, or "
        "adapters.slow: average",
    ),
    (
        {"adapters": {"slow": "average"}, "sampling": {"policy": "both"}},
        "sampling.policy: both goes with sppo only with objective.reference: behaviour, since each answer's log-ratio is to the adapter that "
        "wrote it; set it, or use another objective",
    ),
    (
        {"objective": {"kind": "chase"}, "adapters": {"slow": "chase", "swap_by": "win-rate"}},
        "adapters.swap_by: win-rate compares answers of both adapters, and only the fast one writes; set sampling.policy: both, or "
        "adapters.swap_by: loss",
    ),
    (
        {"schedule": {"domains": ["a"], "early_stop_rounds": 2}, "evaluation": {"prompts": {"source": "held-out.jsonl"}}},
        "schedule.early_stop_rounds: 2 does not go with schedule.domains, since a new domain may lower the win rate at first; leave it out",
    ),
    (
        {"schedule": {"domains": ["a"], "combine": "mean"}, "adapters": {"slow": "average"}},
        "schedule.combine: mean begins each domain with fresh adapters, which leaves an average of earlier ones without meaning; use "
        "adapters.slow: off or chase",
    ),
    (
        {"objective": {"kind": "dpo"}, "sampling": {"opponent": "version", "opponent_version": 1}},
        "sampling.opponent_version: 1 would never be met: an opponent is older than the policy, and version 1 is the last that writes "
        "answers; lower it, or raise schedule.rounds",
    ),
    (
        {"sampling": {"opponent": "start"}},
        "sampling.opponent: start does not go with sppo, whose win probabilities are measured against the round's policy, so that it must "
        "have written every answer; use self, or another objective",
    ),
    (
        {"objective": {"kind": "xpo"}},
        "objective.kind: xpo compares the policy's answers with those of version 0, and sampling.opponent: self has none of these; set "
        "sampling.opponent: start",
    ),
    (
        {"objective": {"kind": "xpo", "reference": "round"}, "sampling": {"opponent": "start"}},
        "objective.reference: round does not go with xpo, whose opponent's answers must be the reference's own, and version 0 writes them; "
        "use auto or start",
    ),
    (
        {"objective": {"kind": "xpo"}, "sampling": {"opponent": "start"}, "schedule": {"domains": ["a"]}},
        "schedule.domains: ['a'] does not go with objective.kind: xpo, whose reference is the policy that the domain started from, while "
        "version 0 writes the opponent's answers; leave it out, or use another objective",
    ),
    (
        {"objective": {"kind": "nash-md"}},
        "objective.kind: nash-md learns from answers of a mixture of policy and reference, which no sampler can draw, since a request carries "
        "one adapter; use schedule.mode: offline, or another objective",
    ),
    (
        {"objective": {"kind": "sppo", "reference": "start"}},
        "objective.reference: start does not go with sppo, whose win probabilities are measured against the policy that wrote the "
        "answers; use auto, round or behaviour",
    ),
    (
        {"schedule": ONLINE, "objective": {"kind": "sppo", "reference": "round"}},
        "objective.reference: round goes with sppo only where schedule.max_staleness is 0, not 2; use auto or behaviour",
    ),
    (
        {"policy": {"dtype": "float16"}},
        "policy.dtype: float16 does not go with training, whose small gradients would vanish in it; use bfloat16 or float32",
    ),
    (
        {"resources": {"learner": {"device": "cuda"}}},
        "resources.learner.device: cuda needs a GPU share; set resources.learner.gpus",
    ),
    (
        {"resources": {"sampler": {"count": 2}}},
        "resources: sampler 2 x 1 + scorer 0.3 + learner 0.5 + services 0.2 = 3 CPUs, and this machine has 2; lower resources.*.cpus "
        "or resources.sampler.count",
    ),
    (
        {"resources": {"sampler": {"gpus": 1}}},
        "resources: the workers ask for 1 GPUs, and this machine has no GPU; set resources.*.gpus to what is there, or to 0 for the CPU",
    ),
    (
        {"resources": {"learner": {"threads": 4}}},
        "resources.learner.threads: 4 is more than the 2 CPUs of this machine; lower it",
    ),
    (
        {"resources": {"sampler": {"tensor_parallel_size": 2, "gpus": 1}}},
        "resources.sampler.tensor_parallel_size: 2 needs as many GPUs for each sampler; set resources.sampler.gpus: 2, or 0 for as many "
        "processes on the CPU",
    ),
    (
        {"adapters": {"target_modules": ["q_proj", "lm_head"]}},
        "adapters.target_modules: lm_head is the output layer, which samplers cannot serve with an adapter; leave it out",
    ),
    (
        {"adapters": {"target_modules": ["embed_tokens"]}},
        "adapters.target_modules: embed_tokens is the embedding, which samplers cannot serve with an adapter; leave it out",
    ),
    (
        {"adapters": {"target_modules": [".*proj"]}},
        "adapters.target_modules: '.*proj' is not the plain name of a layer, like q_proj; patterns and paths are not taken",
    ),
    (
        {"adapters": {"target_modules": ["c_attn"]}},
        "adapters.target_modules: the model has no linear layer c_attn; it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    ),
    (
        {"scorer": {"model": {"kind": "function", "name": "polite"}}},
        "scorer.model.name: this installation offers no function 'polite'; it has length or rubric (packages offer them as entry points of "
        "the group sparring.scorers)",
    ),
    (
        {"evaluation": {"gold": "truth", "prompts": {"source": "held-out.jsonl"}}},
        "evaluation.gold: this installation offers no function 'truth'; it has length or rubric (packages offer them as entry points of "
        "the group sparring.scorers)",
    ),
    (
        {"schedule": {"early_stop_rounds": 1}},
        "schedule.early_stop_rounds: 1 needs held-out prompts; add evaluation.prompts, or leave it out",
    ),
    (
        {"optimizer": {"betas": [0.9, 1.0]}},
        "optimizer.betas[1]: 1 is out of range; it must be at least 0 and less than 1",
    ),
    (
        {"resources": {"fleet": {"lease_seconds": 5, "heartbeat_seconds": 4}}},
        "resources.fleet.lease_seconds: 5 is less than three heartbeats of 4 s, so workers would leave a controller that is alive; raise "
        "it, or lower heartbeat_seconds",
    ),
    (
        {"sampling": {"max_tokens": 128}},
        "sampling.max_tokens: 128 leaves no room for a prompt in a context of 128 tokens; lower it",
    ),
    (
        {"policy": {"max_context_tokens": 256}},
        "policy.max_context_tokens: 256 is more than the 128 that the model was made for; lower it",
    ),
    (
        {"sampling": {"max_tokens": 110}},
        "prompts: 20 of 20 prompts are longer than the 17 that sampling.max_tokens: 110 leaves of the context, the first is 'p0' with "
        "26 tokens; set prompts.too_long to skip or truncate, or lower sampling.max_tokens",
    ),
    (
        {"schedule": {"rounds": 3}},
        "schedule.rounds: 3 rounds of 8 prompts need 24 prompts, and there are 20; lower schedule.rounds or schedule.prompts_per_round, "
        "add prompts, or set schedule.reuse_prompts: true",
    ),
    (
        {"schedule": {"prompts_per_round": 21, "reuse_prompts": True}},
        "schedule.prompts_per_round: 21 is more than the 20 prompts; a round takes each prompt once, so lower it",
    ),
    (
        {"evaluation": {"prompts": {"source": "prompts.jsonl", "limit": 5}, "count": 5}},
        "evaluation.prompts: 5 of 5 prompts are trained on too, the first is 'p2'; hold them out of `prompts`",
    ),
    (
        {"policy": {"model": "./nowhere"}},
        "policy.model: there is no folder nowhere; name one that is there, or put it there",
    ),
    (
        {"policy": {"model": "nowhere"}},
        "policy.model: nowhere is neither a folder beside the job file nor a name on the Hugging Face hub (organisation/name)",
    ),
    (
        {"prompts": {"source": "none.jsonl"}},
        "prompts.source: there is no file none.jsonl; name one that is there, or put it there",
    ),
    (
        {"prompts": {"source": "prompts.txt"}},
        "prompts.source: prompts.txt is neither a .jsonl, .csv or .parquet file nor a dataset on the Hugging Face hub (organisation/name)",
    ),
    (
        {"scorer": {"model": {"kind": "pairrm", "model": "./policy"}}},
        "scorer.model.model: policy is not a PairRM; train one with `sparring scorer train`, or use kind: reward-model or function",
    ),
    (
        {"scorer": {"model": {"kind": "reward-model", "model": "./policy"}}},
        "scorer.model.model: LlamaForCausalLM is not a sequence classifier; a reward model ends with one output",
    ),
    (
        {"scorer": {"model": {"kind": "pairrm", "max_source_tokens": 64, "max_total_tokens": 64}}},
        "scorer.model.max_source_tokens: 64 leaves no room for answers in max_total_tokens: 64; lower it",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"), BAD_KEYS, ids=lambda value: None if isinstance(value, dict) else value[:50]
)
def test_a_wrong_key_is_named_with_its_path_and_what_is_allowed(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_job(job(**change))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"), BAD_COMBINATIONS, ids=lambda value: None if isinstance(value, dict) else value[:50]
)
def test_what_cannot_work_is_refused_before_anything_starts(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    data = job(**change)
    if "scorer" in change:
        data["scorer"] = change["scorer"]
    assert complaint(data, write_world(tmp_path)) == sentence


BAD_MODELS: list[tuple[dict[str, Any], str]] = [
    (
        {"head_dim": 16},
        "policy.model: its attention heads have size 16, and vLLM's CPU backend takes 32, 64, 80, 96, 112, 128, 160, 192, 224, 256 or "
        "512; use another model, or a GPU",
    ),
    ({"architectures": None}, "policy.model: policy/config.json names no architectures, so nobody knows how to load it"),
    (
        {"architectures": ["BertForMaskedLM"]},
        "policy.model: BertForMaskedLM does not write text; a causal language model is needed",
    ),
    (
        {"quantization_config": {"bits": 4}},
        "policy.model: its weights are quantised; adapters are trained on float32, bfloat16 or float16 weights only",
    ),
    (
        {"vocab_size": 200},
        "policy.model: the tokenizer knows ids up to 289, but the model has 200 embeddings; they do not belong together",
    ),
    (
        {"eos_token_id": 300},
        "policy.model: the EOS token 300 is not among the model's 300 embeddings; mend eos_token_id",
    ),
    (
        {"max_position_embeddings": None},
        "policy.max_context_tokens: the model's configuration does not say how long its context is; set it",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"), BAD_MODELS, ids=lambda value: None if isinstance(value, dict) else value[:50]
)
def test_a_model_that_cannot_be_served_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write_world(tmp_path)
    write_model(tmp_path / "policy", **change)
    assert complaint(job(), tmp_path) == sentence


def test_a_model_without_eos_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path)
    write_model(tmp_path / "policy", eos_token_id=None)
    path = tmp_path / "policy" / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"})
    )
    assert complaint(job(), tmp_path) == (
        "policy.model: neither its configuration nor its tokenizer names an EOS token, so no answer could end; set eos_token_id"
    )


def test_a_folder_that_is_an_adapter_is_told_apart_from_a_model(tmp_path: Path) -> None:
    write_world(tmp_path)
    write_adapter(tmp_path / "v3")
    assert complaint(job(policy={"model": "./v3"}), tmp_path) == (
        "policy.model: v3 has no config.json, so it is not a model in the transformers format (it holds a LoRA adapter: name it under "
        "policy.adapter)"
    )


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    write_world(tmp_path)
    (tmp_path / "policy" / "model.safetensors").unlink()
    assert complaint(job(), tmp_path) == "policy.model: policy holds no weights (*.safetensors)"
    (tmp_path / "policy" / "pytorch_model.bin").write_bytes(b"")
    assert (
        complaint(job(), tmp_path)
        == "policy.model: policy holds its weights in pickled .bin files; convert them to safetensors"
    )


def test_a_cut_off_download_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path)
    path = tmp_path / "policy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert (
        complaint(job(), tmp_path)
        == "policy.model: policy/model.safetensors is not a safetensors file, or is cut off; fetch it again"
    )


CUT = "which samplers cannot serve; start from a plain LoRA"
BAD_ADAPTERS: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, f"policy.adapter: its adapter_config.json has use_dora: true (DoRA), {CUT}"),
    ({"modules_to_save": ["lm_head"]}, f"policy.adapter: its adapter_config.json has modules_to_save: [\"lm_head\"], {CUT}"),
    ({"lora_bias": True}, f"policy.adapter: its adapter_config.json has lora_bias: true, {CUT}"),
    ({"bias": "all"}, f"policy.adapter: its adapter_config.json has bias: all, {CUT}"),
    ({"init_lora_weights": "pissa"}, f"policy.adapter: its adapter_config.json has init_lora_weights: pissa, {CUT}"),
    ({"rank_pattern": {"q_proj": 4}}, f"policy.adapter: its adapter_config.json has rank_pattern, {CUT}"),
    ({"peft_type": "LOHA"}, "policy.adapter: it is of the type \"LOHA\"; only LORA is taken"),
    ({"lora_alpha": 8}, "adapters.alpha: 32 differs from the start adapter's 8; set it to 8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"), BAD_ADAPTERS, ids=lambda value: None if isinstance(value, dict) else value[16:70]
)
def test_a_start_adapter_that_cannot_be_served_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_world(tmp_path)
    write_adapter(tmp_path / "start", **change)
    assert complaint(job(policy={"adapter": "start"}), tmp_path) == sentence


def test_a_start_adapter_must_have_the_jobs_rank_and_layers(tmp_path: Path) -> None:
    write_world(tmp_path)
    write_adapter(tmp_path / "rank-8", rank=8)
    assert complaint(job(policy={"adapter": "rank-8"}), tmp_path) == (
        "adapters.rank: 16 differs from the start adapter's 8; set it to 8"
    )
    some = {name: shape for name, shape in layer_shapes().items() if name.endswith(("q_proj", "v_proj"))}
    write_adapter(tmp_path / "some", some)
    assert complaint(job(policy={"adapter": "some"}), tmp_path) == (
        "adapters.target_modules: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj differ from the start adapter's q_proj, "
        "v_proj; set it to [q_proj, v_proj]"
    )


@pytest.mark.parametrize("shapes", [layer_shapes(hidden=128), layer_shapes(layers=3), layer_shapes(layers=1)])
def test_a_start_adapter_of_another_model_is_refused(shapes: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    write_world(tmp_path)
    write_adapter(tmp_path / "other", shapes)
    assert complaint(job(policy={"adapter": "other"}), tmp_path).startswith(
        "policy.adapter: it was made for another model: "
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"num_labels": 1, "id2label": {"0": "a", "1": "b"}},
            "scorer.model.model: the classifier has 2 outputs; a reward model has one",
        ),
        ({}, "scorer.model.model: the classifier has 2 outputs; a reward model has one"),
    ],
)
def test_a_classifier_of_several_outputs_is_no_reward_model(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_world(tmp_path)
    write_model(tmp_path / "judge", architectures=["LlamaForSequenceClassification"], **change)
    data = job()
    data["scorer"] = {"model": {"kind": "reward-model", "model": "./judge"}}
    assert complaint(data, tmp_path) == sentence


def test_all_problems_of_a_file_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        parse_job(job(schedule={"rounds": 0}, sampling={"answers": 1}))
    assert str(caught.value).splitlines() == [
        "sampling.answers: 1 is too small; it must be at least 2",
        "schedule.rounds: 0 is too small; it must be at least 1",
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("job.yaml", "a: 1\nb: 2\na: 3\n", "job.yaml, line 3, column 1: the key `a` stands twice in one mapping; keep one"),
        ("job.yaml", "policy:\n\tmodel: x\n", "job.yaml, line 2, column 1: found character '\\t' that cannot start any token"),
        ("job.yaml", "", "job.yaml: is empty; a job needs at least `policy` and `prompts`"),
        ("job.yaml", "- 1\n", "job.yaml: a job must be a mapping of keys to values, not [1]"),
        ("job.yaml", "{}", "policy: missing; it is required\nprompts: missing; it is required"),
        ("job.json", '{"a": 1,\n}', "job.json, line 2, column 1: not JSON (Expecting property name enclosed in double quotes)"),
        ("job.json", '{"a": 1, "a": 2}', "job.json: the key `a` stands twice in one mapping; keep one"),
        ("job.yaml", "a: !!python/name:os.system\n", "job.yaml, line 1, column 4: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/name:os.system'"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_by_line(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        load_job(tmp_path / name)
    assert str(caught.value).replace(f"{tmp_path}/", "") == sentence


def test_a_missing_file_a_folder_and_no_text_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xfe\x00")
    for path, end in ((tmp_path / "no.yaml", "no such file"), (tmp_path, "is a folder; name the job file inside it")):
        with pytest.raises(InputError, match=end):
            load_job(path)
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_job(tmp_path / "picture.yaml")
