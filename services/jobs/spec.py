"""The job specification: what a person writes to start a job.

Composed of the configuration that lives beside what it configures. Free of torch, ray and vllm, so that a job file is read, checked
and documented in well under a second.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from learner.config import (
    AdapterConfig,
    Config,
    LearnerConfig,
    OptimizerConfig,
    PairingConfig,
    PolicyConfig,
    ScheduleConfig,
)
from learner.objectives.kinds import AnyObjective
from learner.objectives.parameters import SppoParameters
from learner.records import Module
from workers.config import (
    FleetConfig,
    PlacementConfig,
    QueueConfig,
    SamplerConfig,
    SamplingConfig,
    ScorerConfig,
    ScorerResources,
)

LabelName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
LabelValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]

CHAT_SLOTS = 2
"""Requests of chat that a sampler of an online job takes at a time, unless the job says otherwise."""


class PromptsConfig(Config):
    """Where prompts come from."""

    source: str = Field(
        min_length=1, description="A .jsonl, .csv or .parquet file, or the name of a dataset on the Hugging Face hub."
    )
    split: str = Field(default="train", description="Split of a hub dataset.")
    column: str = Field(default="prompt", description="Field that holds the prompt: text, or a list of chat messages.")
    id_column: str = Field(default="id", description="Field that holds the prompt's id. Missing ids are numbered.")
    domain_column: str = Field(
        default="domain", description="Field that holds the prompt's domain, where there is one."
    )
    system: str | None = Field(default=None, description="System prompt put before prompts that have none.")
    chosen_column: str = Field(
        default="chosen",
        description=(
            "Offline: field that holds the better answer: text, or a list of chat messages whose last one is the answer. Without a "
            "prompt's field, the messages before it are the prompt. With objective.kind: nash-md the policy's own answer, whichever is better."
        ),
    )
    rejected_column: str = Field(
        default="rejected",
        description="Offline: field that holds the worse answer, likewise. With objective.kind: nash-md the opponent's answer.",
    )
    chosen_score_column: str | None = Field(
        default="chosen_score",
        description=(
            "Offline: field that holds the better answer's score. The difference of both scores is the pair's logit; a row without "
            "them is a certain preference. null: do not read scores."
        ),
    )
    rejected_score_column: str | None = Field(
        default="rejected_score", description="Offline: field that holds the worse answer's score."
    )
    limit: int | None = Field(default=None, ge=1, description="Read only the first so many.")
    too_long: Literal["error", "skip", "truncate"] = Field(
        default="error",
        description=(
            "Prompts that leave no room for the answer (offline: for the longer one): refuse the job, leave them out, or cut their start."
        ),
    )
    shuffle: bool = Field(default=True, description="Shuffle by the job's seed before rounds take their slices.")


class FeedbackConfig(Config):
    """Preferences of people that arrive while the job runs, over REST or with `sparring feedback`."""

    share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "At most this share of a version's groups is taken from preferences that people sent, as long as some are waiting; the rest "
            "is self-play. 0: none are taken in. They arrive when they arrive, so such a job is deterministic only given what had "
            "arrived when each of its groups was admitted."
        ),
    )


class EvaluationConfig(Config):
    """How each version is judged on held-out prompts against version 0."""

    prompts: PromptsConfig | None = Field(
        default=None, description="Held-out prompts. Without them nothing is evaluated."
    )
    count: int = Field(default=256, ge=1, description="How many of them are used.")
    every: int = Field(default=1, ge=1, description="Evaluate every so many versions; the last one always.")
    gold: str | None = Field(
        default=None,
        description="Name of a second, independent judge (a registered function), so that over-optimisation shows.",
    )
    tie_margin: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="|P(a beats b) - 1/2| up to which a comparison is a tie and counts one half.",
    )
    timeout_seconds: float = Field(
        default=3600, gt=0, description="Longest evaluation of one version: all prompts answered, and judged."
    )


class ResourcesConfig(Config):
    """What the workers may use."""

    sampler: SamplerConfig = Field(default=SamplerConfig(), description="Workers that write answers.")
    scorer: ScorerResources = Field(default=ScorerResources(), description="The worker that compares answers.")
    learner: LearnerConfig = Field(default=LearnerConfig(), description="The worker that trains the adapter.")
    placement: PlacementConfig = Field(default=PlacementConfig(), description="Which machines they get.")
    queue: QueueConfig = Field(default=QueueConfig(), description="What waits between scorer and learner.")
    fleet: FleetConfig = Field(default=FleetConfig(), description="How workers are watched, proved and replaced.")


TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class OutputConfig(Config):
    """What is kept, and who is told."""

    keep_samples: bool = Field(default=True, description="Keep the text of learned groups, for inspection and export.")
    keep_versions: Literal["all", "best-and-newest"] = Field(
        default="all", description="Versions kept on disk when the job ends."
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=(),
        description="Where metrics and the report go too; each needs its package: `pip install tensorboard`, `wandb` or `mlflow`.",
    )


class JobSpec(Config):
    """An iterative self-play job."""

    name: str = Field(
        default="job", pattern=r"^[a-z0-9][a-z0-9-]{0,47}$", description="Lower-case letters, digits and hyphens."
    )
    metadata: dict[LabelName, LabelValue] = Field(
        default_factory=dict, max_length=64, description="Your own labels, to find the job by."
    )
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Of queued jobs the one with the highest priority starts first, then the oldest.",
    )
    policy: PolicyConfig = Field(description="The model that is aligned.")
    prompts: PromptsConfig = Field(description="What it is asked while it learns.")
    scorer: ScorerConfig = Field(default=ScorerConfig(), description="What compares its answers.")
    objective: AnyObjective = Field(default_factory=SppoParameters, description="What is learned from the comparisons.")
    pairing: PairingConfig = Field(default=PairingConfig(), description="Which answers make a pair.")
    adapters: AdapterConfig = Field(default=AdapterConfig(), description="The LoRA module that is trained.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="How its weights move.")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How answers are drawn.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="How the job proceeds.")
    feedback: FeedbackConfig = Field(default=FeedbackConfig(), description="What people may add to it.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="How versions are judged.")
    resources: ResourcesConfig = Field(default=ResourcesConfig(), description="What the workers may use.")
    output: OutputConfig = Field(default=OutputConfig(), description="What is kept.")
    seed: int = Field(default=0, ge=0, lt=1 << 31, description="Every draw of the job derives from it.")

    @property
    def offline(self) -> bool:
        """Whether the job learns from a file's answers."""
        return self.schedule.mode == "offline"

    @property
    def feedback_groups(self) -> int:
        """Groups of one version that may come from people's preferences."""
        return int(self.feedback.share * self.schedule.prompts_per_round + 1e-9)  # 0.29 * 100 is 28.999…

    @property
    def modules(self) -> tuple[Module, ...]:
        """The adapters that a version consists of."""
        return ("fast",) if self.adapters.slow == "off" else ("fast", "slow")

    @property
    def learning_adapters(self) -> int:
        """Adapters that the job itself may have served at a time: of as many versions as staleness keeps in use, and the opponent."""
        return (self.schedule.max_staleness + 2) * len(self.modules) + (self.sampling.fixed_opponent is not None)

    @property
    def chat_slots(self) -> int:
        """Requests of chat that one of the job's samplers takes at a time, each of which may name a version of its own."""
        sampler = self.resources.sampler
        if sampler.chat_slots is not None or self.schedule.mode != "online":
            return sampler.chat_slots or 0
        if sampler.lora_slots is None:
            return CHAT_SLOTS
        return max(0, min(CHAT_SLOTS, sampler.lora_slots - self.learning_adapters))

    @property
    def live_adapters(self) -> int:
        """Adapters that a sampler may serve at a time (rule 6): the job's own, and those that chat names."""
        return self.learning_adapters + self.chat_slots

    @property
    def most_rank(self) -> int:
        """The highest rank that an adapter of the job can have: a combination stacks the ranks of all domains."""
        schedule = self.schedule
        return self.adapters.rank * (1 if schedule.combine == "none" else len(schedule.domains or ("all",)))

    @property
    def opponent(self) -> Literal["slow"] | int | None:
        """Who writes some of the answers beside the policy: the slow adapter, or a version."""
        return "slow" if self.sampling.opponent == "slow" else self.sampling.fixed_opponent

    @property
    def samples(self) -> bool:
        """Whether samplers and a scorer run: always, but offline only to evaluate."""
        return not self.offline or self.evaluation.prompts is not None
