"""Configuration of what the learner does. Free of torch, so that a job file can be checked without it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learner.objectives.kinds import AnyObjective
from learner.objectives.parameters import SppoParameters


class Config(BaseModel):
    """Base of all configuration: immutable, and closed to unknown keys (rule 15)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicyConfig(Config):
    """The model that is aligned."""

    model: str = Field(
        min_length=1, description="A local folder in the transformers format, or a name on the Hugging Face hub."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    adapter: str | None = Field(
        default=None,
        description="A local peft LoRA folder to start from (another job's version), instead of the bare model.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description=(
            "Weights' type. `auto`: float32 on a CPU, bfloat16 on a GPU. `float16` is refused: small gradients vanish in it."
        ),
    )
    max_context_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Prompt plus answer, in tokens. Default: what the model's configuration allows.",
    )


class AdapterConfig(Config):
    """The LoRA module that is trained. LoRA is the only way to train for now: the base stays frozen."""

    rank: int = Field(default=16, ge=1, le=512, description="Rank of the update.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input while training.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description="Linear layers that get an adapter: all but the output layer, or a list of names.",
    )
    slow: Literal["off", "chase", "average"] = Field(
        default="off",
        description=(
            "A second adapter on the same base. `chase`: trained beside the fast one at a lower learning rate, with `objective.kind: chase` "
            "(OFS-DPO, arXiv 2406.05534). `average`: the exponential moving average of the fast one."
        ),
    )
    slow_rate_ratio: float = Field(
        default=0.3, gt=0, le=1, description="With `slow: chase`: the slow adapter's learning rate over the fast one's."
    )
    slow_decay: float = Field(
        default=0.95, ge=0, lt=1, description="With `slow: average`: what the average keeps of itself at each step."
    )
    swap: Literal["roles", "weights", "never"] = Field(
        default="roles",
        description=(
            "With `slow: chase`: what happens when the slow adapter is the better one. `roles`: it becomes the fast one and keeps its "
            "learning rate; `weights`: it becomes the fast one, and the learning rates change places too; `never`: nothing."
        ),
    )
    swap_by: Literal["loss", "win-rate"] = Field(
        default="loss",
        description=(
            "What says which adapter is better: the lower mean of the wrapped objective's loss, or, with sampling.policy: both, which one's "
            "answers win."
        ),
    )
    swap_interval: int = Field(default=50, ge=1, description="Optimizer steps between two comparisons.")


class OptimizerConfig(Config):
    """How the adapter's weights move."""

    kind: Literal["adamw", "rmsprop"] = Field(default="adamw", description="SPPO's published recipe uses rmsprop.")
    learning_rate: float = Field(default=5e-6, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moment decay rates.")
    weight_decay: float = Field(default=0.0, ge=0, description="Pull of the adapter's weights towards 0.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="The whole gradient is clipped to this norm.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="Shape of the learning rate."
    )
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="Share of the schedule that rises from 0.")
    span: Literal["job", "domain", "round"] = Field(
        default="job",
        description="Whether one schedule spans the job, or each domain or each round starts its own (SPPO's recipe: each round).",
    )


LEAST_ROBUST_RANKS = 3
"""With fewer gradients than this nobody can tell which one is wrong."""

PairingRule = Literal["auto", "best-worst", "all-pairs", "random-pair", "top-vs-rest", "all", "did"]


class PairingConfig(Config):
    """From K scored answers to what is learned."""

    rule: PairingRule = Field(
        default="auto",
        description=(
            "How K answers become records: `best-worst`; `all-pairs` whose preference exceeds `tie_margin`; `random-pair`, one of "
            "those; `top-vs-rest`, for s-dpo; `all`, for sppo; `did`, the best against one drawn by how much the policy has turned "
            "from it (arXiv 2505.23761). `auto`: what the objective wants."
        ),
    )
    identical: Literal["skip", "keep"] = Field(default="skip", description="A group whose answers all say the same.")
    ties: Literal["skip", "keep"] = Field(
        default="skip", description="A group whose best and worst answer score the same."
    )
    tie_margin: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Two answers count as tied when |P(one beats the other) - 1/2| is at most this.",
    )


class LearnerConfig(Config):
    """Where and how the learner computes."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto`: the GPU where `gpus` gives it one."
    )
    threads: int = Field(default=1, ge=1, description="torch threads.")
    cpus: float = Field(default=0.5, gt=0, description="Ray CPU share.")
    gpus: float = Field(default=0.0, ge=0, description="Ray GPU share.")
    micro_batch_tokens: int = Field(
        default=8192,
        ge=64,
        description="Token budget of one forward and backward pass, padding included. Not a batch size.",
    )
    logit_chunk_tokens: int = Field(
        default=1024, ge=1, description="Tokens whose vocabulary-wide logits are held at a time."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice, and keep only the layers' inputs: slower, less memory."
    )
    ranks: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Learner processes that share each optimizer batch; each has the model, and `cpus` and `gpus` of its own.",
    )
    rank_timeout_seconds: float = Field(
        default=300,
        gt=0,
        description="Longest wait of one rank for another: in a step, and for one that is started again.",
    )
    gradient_reducer: Literal["mean", "median", "flag"] = Field(
        default="mean",
        description=(
            "How ranks' gradients are combined. `median` (of every coordinate) and `flag` (the Flag Aggregator, arXiv 2302.05865) bear "
            "wrong gradients of a minority of the ranks."
        ),
    )
    step_timeout_seconds: float = Field(default=1800, gt=0, description="Longest wait for one optimizer step.")
    start_timeout_seconds: float = Field(
        default=1800,
        gt=0,
        description="Longest wait for the learner to start, the download of a model from the hub included.",
    )


class ScheduleConfig(Config):
    """How the job proceeds."""

    mode: Literal["rounds", "online", "offline"] = Field(
        default="rounds",
        description=(
            "`rounds`: sample a slice, learn from it, publish. `online`: sampling overlaps learning, bounded by max_staleness. "
            "`offline`: nothing is sampled; the answers are the chosen and rejected ones of `prompts.source`."
        ),
    )
    rounds: int = Field(default=3, ge=1, description="Versions to publish after version 0; with `domains`, in each.")
    prompts_per_round: int = Field(
        default=256, ge=1, description="Groups that make one version. Rounds take disjoint slices."
    )
    prompts_per_step: int = Field(default=16, ge=1, description="Groups in one optimizer batch.")
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="How many versions old an answer may be when it is learned from. `rounds` and `offline` take 0 only.",
    )
    schedule_epochs: int = Field(default=1, ge=1, description="Passes that the learning-rate schedule is drawn for.")
    stop_after_epochs: int = Field(default=1, ge=1, description="Passes that are made over a round's groups.")
    domains: tuple[str, ...] | None = Field(
        default=None,
        description=(
            "Domains of the prompts, one after another, `rounds` rounds each: continual self-play. Default: all prompts, mixed. "
            "objective.reference: start is then the policy that the domain started from."
        ),
    )
    combine: Literal["none", "last", "mean", "cofs"] = Field(
        default="none",
        description=(
            "With `domains`: what becomes of the domains' adapters. `none`: one adapter goes through all of them. Otherwise each domain "
            "trains a fresh adapter on the frozen combination of those before it, and ends with the combination of the policies so far: "
            "the `last` one, their `mean`, or the weights on the simplex that fit all domains' memories best (`cofs`, COFS-DPO, arXiv "
            "2406.05534)."
        ),
    )
    memory_share: float = Field(
        default=0.05, gt=0, le=1, description="With `combine: cofs`: share of a domain's groups that its memory keeps."
    )
    memory_bytes: int = Field(default=4 << 20, ge=1 << 10, description="Most bytes of one domain's memory.")
    memory_rule: Literal["random", "margin"] = Field(
        default="random",
        description="Which groups the memory keeps: a random sample, or those with the clearest preference.",
    )
    reuse_prompts: bool = Field(default=False, description="Begin the prompts again, reshuffled, when they run out.")
    early_stop_rounds: int | None = Field(
        default=None, ge=1, description="Stop after this many evaluations without a better win rate."
    )
    max_kl: float | None = Field(
        default=None,
        gt=0,
        description="Stop when the KL to version 0 on fresh answers passes this many nats an answer.",
    )

    @model_validator(mode="after")
    def _modes_and_epochs_fit(self) -> ScheduleConfig:
        if self.mode == "rounds" and self.max_staleness != 0:
            raise ValueError(
                f"max_staleness: {self.max_staleness} does not go with mode: rounds, whose answers all come from the round's "
                "version; set max_staleness: 0 or mode: online"
            )
        if self.mode == "offline" and self.max_staleness != 0:
            raise ValueError(
                f"max_staleness: {self.max_staleness} does not go with mode: offline, whose answers come from a file and have no "
                "age; set max_staleness: 0 or mode: online"
            )
        if self.mode == "online" and self.max_staleness == 0:
            raise ValueError(
                "max_staleness: 0 does not go with mode: online; set max_staleness to 1 or more, or mode: rounds"
            )
        if self.stop_after_epochs > self.schedule_epochs:
            raise ValueError(
                f"stop_after_epochs: {self.stop_after_epochs} is more than schedule_epochs: {self.schedule_epochs}; "
                "raise schedule_epochs or lower stop_after_epochs"
            )
        if self.mode == "online" and self.stop_after_epochs > 1:
            raise ValueError(
                "stop_after_epochs: online learning reads each group once; set it to 1 or use mode: rounds"
            )
        if self.domains is not None:
            if len(set(self.domains)) != len(self.domains) or not self.domains:
                raise ValueError(
                    f"domains: {list(self.domains)} must name each domain once; leave it out to mix all prompts"
                )
            if self.mode == "online":
                raise ValueError(
                    "domains: a list does not go with mode: online, where one domain's answers would be learned from in the next; use "
                    "mode: rounds or offline"
                )
        elif self.combine != "none":
            raise ValueError(f"combine: {self.combine} needs domains to combine; list them, or set combine: none")
        if self.prompts_per_step > self.prompts_per_round:
            raise ValueError(
                f"prompts_per_step: {self.prompts_per_step} is more than prompts_per_round: {self.prompts_per_round}; "
                "a step takes its groups from one round"
            )
        return self

    @property
    def training_rounds(self) -> int:
        """Rounds that learn: ``rounds`` in each domain."""
        return self.rounds * len(self.domains or ("all",))


class TrainerConfig(Config):
    """Everything that one trainer needs to know: the parts of a job's specification that concern learning."""

    job_id: str = Field(min_length=1)
    policy: PolicyConfig
    adapters: AdapterConfig = AdapterConfig()
    objective: AnyObjective = Field(default_factory=SppoParameters)
    optimizer: OptimizerConfig = OptimizerConfig()
    pairing: PairingConfig = PairingConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    learner: LearnerConfig = LearnerConfig()
    truncated: Literal["keep", "drop", "penalise"] = "keep"
    temperature: float = Field(default=1.0, gt=0, description="The scorer's: divides its logits.")
    opponent: Literal["slow"] | int | None = Field(
        default=None, description="Who writes some of the answers beside the policy: the slow adapter, or a version."
    )
    seed: int = Field(default=0, ge=0)
