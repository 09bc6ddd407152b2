"""The demo's job: SPPO on the demo world, for two CPU cores."""

from __future__ import annotations

from learner.config import AdapterConfig, LearnerConfig, OptimizerConfig, PolicyConfig, ScheduleConfig
from learner.objectives.parameters import SppoParameters
from services.demo.world import MAX_ANSWER_TOKENS, DemoWorld
from services.jobs.spec import EvaluationConfig, JobSpec, PromptsConfig, ResourcesConfig
from workers.config import PairRMScorer, SamplerConfig, SamplingConfig, ScorerConfig, ScorerResources

GOLD = "helpdesk-rubric"


def demo_spec(world: DemoWorld, *, seed: int, rounds: int, name: str) -> JobSpec:
    """The job that ``sparring demo`` runs.

    The paper's beta of 0.001 asks for changes that a model of a million parameters cannot make in a round of 256 prompts without
    coming apart; 0.05 (eta 20) moves an answer that always wins by ten nats at most. The scorer works while the sampler writes, so each
    has one of the two cores; the learner follows them and has both.
    """
    return JobSpec(
        name=name,
        policy=PolicyConfig(model=str(world.policy), dtype="float32"),
        prompts=PromptsConfig(source=str(world.prompts_train)),
        scorer=ScorerConfig(model=PairRMScorer(model=str(world.pairrm), max_source_tokens=128, max_total_tokens=512)),
        objective=SppoParameters(beta=0.05, reference="round"),
        adapters=AdapterConfig(rank=16, alpha=32),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=1e-3, schedule="linear", warmup_ratio=0.05),
        sampling=SamplingConfig(answers=5, temperature=1.0, max_tokens=MAX_ANSWER_TOKENS, truncated="penalise"),
        schedule=ScheduleConfig(rounds=rounds, prompts_per_round=256, prompts_per_step=16),
        evaluation=EvaluationConfig(prompts=PromptsConfig(source=str(world.prompts_eval)), count=256, gold=GOLD),
        resources=ResourcesConfig(
            sampler=SamplerConfig(cpus=1.0, threads=1, kv_cache_gib=0.5),
            scorer=ScorerResources(device="cpu", cpus=0.3, threads=1),
            learner=LearnerConfig(device="cpu", cpus=0.4, threads=2),
        ),
        seed=seed,
    )
