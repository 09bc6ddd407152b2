"""The demo's job: SPPO on the demo world, for two CPU cores or one GPU."""

from __future__ import annotations

from learner.config import AdapterConfig, LearnerConfig, OptimizerConfig, PolicyConfig, ScheduleConfig
from learner.objectives.parameters import SppoParameters
from services.demo.world import MAX_ANSWER_TOKENS, DemoWorld
from services.jobs.spec import EvaluationConfig, JobSpec, PromptsConfig, ResourcesConfig
from workers.config import PairRMScorer, SamplerConfig, SamplingConfig, ScorerConfig, ScorerResources

GOLD = "helpdesk-rubric"


def demo_spec(world: DemoWorld, *, seed: int, rounds: int, name: str, gpu: bool = False) -> JobSpec:
    """The job that ``sparring demo`` runs.

    The paper's beta of 0.001 asks for changes that a model of a million parameters cannot make in a round of 256 prompts without
    coming apart; 0.05 (eta 20) moves an answer that always wins by ten nats at most. The scorer works while the sampler writes, so each
    has one of the two cores; the learner follows them and has both. With ``gpu`` all three share one card.
    """
    cpu = ResourcesConfig(
        sampler=SamplerConfig(cpus=1.0, threads=1, kv_cache_gib=0.5),
        scorer=ScorerResources(device="cpu", cpus=0.3, threads=1),
        learner=LearnerConfig(device="cpu", cpus=0.4, threads=2),
    )
    card = ResourcesConfig(
        sampler=SamplerConfig(cpus=1.0, gpus=0.5, gpu_memory_utilization=0.5),
        scorer=ScorerResources(cpus=0.3, gpus=0.2),
        learner=LearnerConfig(cpus=0.4, gpus=0.3),
    )
    return JobSpec(
        name=name,
        policy=PolicyConfig(model=str(world.policy), dtype="bfloat16" if gpu else "float32"),
        prompts=PromptsConfig(source=str(world.prompts_train)),
        scorer=ScorerConfig(model=PairRMScorer(model=str(world.pairrm), max_source_tokens=128, max_total_tokens=512)),
        objective=SppoParameters(beta=0.05, reference="round"),
        adapters=AdapterConfig(rank=16, alpha=32),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=1e-3, schedule="linear", warmup_ratio=0.05),
        sampling=SamplingConfig(answers=5, temperature=1.0, max_tokens=MAX_ANSWER_TOKENS, truncated="penalise"),
        schedule=ScheduleConfig(rounds=rounds, prompts_per_round=256, prompts_per_step=16),
        evaluation=EvaluationConfig(prompts=PromptsConfig(source=str(world.prompts_eval)), count=256, gold=GOLD),
        resources=card if gpu else cpu,
        seed=seed,
    )


def on_demo_world(spec: JobSpec, world: DemoWorld, rounds: int | None = None) -> JobSpec:
    """A job on the demo's world: its policy, prompts, scorer and gold judge take the place of the job's own.

    Args:
        spec: what is kept is everything else.
        world: where the parts lie.
        rounds: instead of the job's, where given.
    """
    prompts = spec.prompts.model_copy(update={"source": str(world.prompts_train), "limit": None})
    held_out = (spec.evaluation.prompts or prompts).model_copy(
        update={"source": str(world.prompts_eval), "limit": None}
    )
    scorer = PairRMScorer(model=str(world.pairrm), max_source_tokens=128, max_total_tokens=512)
    changes: dict[str, object] = {
        "policy": spec.policy.model_copy(update={"model": str(world.policy), "revision": None}),
        "prompts": prompts,
        "scorer": spec.scorer.model_copy(update={"model": scorer}),
        "evaluation": spec.evaluation.model_copy(update={"prompts": held_out, "gold": GOLD}),
    }
    if rounds is not None:
        changes["schedule"] = spec.schedule.model_copy(update={"rounds": rounds})
    return spec.model_copy(update=changes)
