"""Configuration of the workers. Free of ray and vllm, so that a job file can be checked without them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from learner.config import Config
from learner.records import Module, Share


class SamplingConfig(Config):
    """How answers are drawn."""

    answers: int = Field(default=5, ge=2, le=64, description="Answers to each prompt, K.")
    temperature: float = Field(default=1.0, gt=0, description="1 samples the policy itself.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Only the likeliest tokens of this total probability are drawn. 1: all."
    )
    top_k: int = Field(default=0, ge=0, description="0: no limit.")
    max_tokens: int = Field(default=512, ge=1, description="Longest answer, in tokens, EOS included.")
    truncated: Literal["keep", "drop", "penalise"] = Field(
        default="keep",
        description=(
            "Answers cut off without EOS: `keep` them as they are; `drop` them from the group; `penalise`: they lose against every "
            "answer that ended."
        ),
    )
    policy: Literal["fast", "slow", "both"] = Field(
        default="fast",
        description=(
            "Which adapter of the newest version writes, where adapters.slow is on. `both`: half of each prompt's K answers come from each, an "
            "odd one from the two by turns."
        ),
    )
    opponent: Literal["self", "start", "slow", "version"] = Field(
        default="self",
        description=(
            "Who else answers each prompt. `self`: nobody, the policy writes all K answers. `start` (version 0), `version` (opponent_version) "
            "or `slow` (the slow adapter): the policy writes the first ceil(K / 2) and the opponent the last floor(K / 2)."
        ),
    )
    opponent_version: int | None = Field(
        default=None,
        ge=0,
        description="With `opponent: version`: which one. Until a newer version is published, the policy is its own opponent.",
    )

    @model_validator(mode="after")
    def _opponent_is_named_where_there_is_one(self) -> SamplingConfig:
        if self.opponent == "version" and self.opponent_version is None:
            raise ValueError("opponent_version: missing; opponent: version needs the number of a version")
        if self.opponent != "version" and self.opponent_version is not None:
            raise ValueError(
                f"opponent_version: {self.opponent_version} does not go with opponent: {self.opponent}; set opponent: version, or leave "
                "it out"
            )
        if self.opponent != "self" and self.policy != "fast":
            raise ValueError(
                f"opponent: {self.opponent} does not go with policy: {self.policy}; an opponent plays the fast adapter: set policy: fast, or "
                "opponent: self"
            )
        return self

    @property
    def fixed_opponent(self) -> int | None:
        """The version that is every newer version's opponent; None where the policy plays itself."""
        return 0 if self.opponent == "start" else self.opponent_version

    @property
    def needs_slow(self) -> bool:
        """Whether the slow adapter writes answers."""
        return self.policy != "fast" or self.opponent == "slow"

    def opponent_of(self, version: int) -> int | None:
        """The version that answers beside ``version``: an older one, or None where it writes all answers itself."""
        fixed = self.fixed_opponent
        return fixed if fixed is not None and fixed < version else None

    def shares(self, version: int, index: int) -> tuple[Share, ...]:
        """Who writes the K answers to the ``index``-th prompt of a round under ``version``, in order."""
        half = self.answers // 2
        older = self.opponent_of(version)
        if older is not None:
            parts: list[tuple[Module, int, int]] = [("fast", version, self.answers - half), ("fast", older, half)]
        elif self.opponent == "slow":
            parts = [("fast", version, self.answers - half), ("slow", version, half)]
        elif self.policy == "both":
            odd = self.answers % 2 * (index % 2 == 0)
            parts = [("fast", version, half + odd), ("slow", version, self.answers - half - odd)]
        else:
            parts = [(self.policy, version, self.answers)]
        return tuple(Share(module=module, version=number, answers=answers) for module, number, answers in parts)


class SamplerConfig(Config):
    """The sampler's workers, each one vLLM engine."""

    count: int = Field(default=1, ge=1, le=256, description="Samplers, each with an engine of its own.")
    cpus: float = Field(default=1.0, gt=0, description="Ray CPU share of one sampler.")
    gpus: float = Field(default=0.0, ge=0, description="Ray GPU share of one sampler. 0: vLLM's CPU backend.")
    threads: int = Field(default=1, ge=1, description="OpenMP threads of the engine on the CPU backend.")
    kv_cache_gib: float = Field(default=1.0, gt=0, description="Key-value cache on the CPU backend, in GiB.")
    gpu_memory_utilization: float = Field(
        default=0.85, gt=0, le=1, description="Share of a GPU's memory that vLLM may take."
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs that share one engine's weights; processes, on the CPU."
    )
    enforce_eager: bool = Field(
        default=True, description="Run without CUDA graphs or compilation. Set false on a GPU for speed."
    )
    max_running_requests: int = Field(default=256, ge=1, description="Answers that the engine works on at a time.")
    lora_slots: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Adapters that may be served at a time (vLLM's max_loras). Default: of max_staleness + 2 versions, both where adapters.slow is on, "
            "one more for a fixed opponent, and chat_slots."
        ),
    )
    cpu_lora_slots: int | None = Field(
        default=None,
        ge=1,
        description="Adapter versions kept in memory (vLLM's max_cpu_loras). Default: twice lora_slots.",
    )
    chat_slots: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description=(
            "Requests of chat that a sampler takes at a time beside the job's own work, and versions that it keeps for them. Default: 2 with "
            "schedule.mode: online, as far as lora_slots leaves room; else 0, and the service starts a sampler for chat when it is asked."
        ),
    )
    start_timeout_seconds: float = Field(
        default=1800,
        gt=0,
        description="Longest wait for the engine to start, the download of a model from the hub included.",
    )
    request_timeout_seconds: float = Field(
        default=600,
        gt=0,
        description="Longest time in which a sampler that has work finishes no group of answers, or has none scored; what waits for its turn is not late.",
    )


class PairRMScorer(Config):
    """PairRM: one model reads the prompt and two answers, and says which is better."""

    kind: Literal["pairrm"] = "pairrm"
    model: str = Field(
        default="llm-blender/PairRM-hf", description="A local folder, or llm-blender/PairRM, or llm-blender/PairRM-hf."
    )
    max_source_tokens: int = Field(default=1224, ge=8, description="The prompt is cut to this length, on the right.")
    max_total_tokens: int = Field(
        default=2048, ge=32, description="Prompt and both answers; each answer gets half of what is left."
    )
    strip_thinking: bool = Field(default=False, description="Leave <think>...</think> out of what is compared.")


class RewardModelScorer(Config):
    """A sequence-classification reward model; logits are differences of rewards (Bradley-Terry)."""

    kind: Literal["reward-model"] = "reward-model"
    model: str = Field(min_length=1, description="A local folder or a hub name of a one-output sequence classifier.")
    max_total_tokens: int = Field(default=2048, ge=32, description="Prompt and answer; what is longer is cut.")
    strip_thinking: bool = Field(default=False, description="Leave <think>...</think> out of what is judged.")


class FunctionScorer(Config):
    """A Python function that gives each answer a reward; logits are differences of rewards (Bradley-Terry).

    Functions come by name from those that installed packages offer (entry points of the group ``sparring.scorers``), never as
    ``module:function`` from a job (rule 16).
    """

    kind: Literal["function"] = "function"
    name: str = Field(min_length=1, description="Name of a function that this installation offers.")


AnyScorer = Annotated[PairRMScorer | RewardModelScorer | FunctionScorer, Field(discriminator="kind")]


class ScorerConfig(Config):
    """The preference scorer and its workers' resources."""

    model: AnyScorer = Field(default_factory=PairRMScorer, description="What compares the answers.")
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="Divides the order-averaged logit. 0.5 gives the doubled logit that SPPO's code and TRL used.",
    )
    shuffle: bool = Field(
        default=False,
        description="Control experiment: permute the answers' scores at random within each group. Learning must then stay at 50 %.",
    )


class ScorerResources(Config):
    """Where and how the scorer computes."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto`: the GPU where `gpus` gives it one."
    )
    cpus: float = Field(default=0.3, gt=0, description="Ray CPU share.")
    gpus: float = Field(default=0.0, ge=0, description="Ray GPU share.")
    threads: int = Field(default=1, ge=1, description="torch threads.")
    batch_tokens: int = Field(default=16384, ge=64, description="Token budget of one forward pass, padding included.")
    max_waiting_groups: int = Field(
        default=256, ge=1, description="Groups that may wait to be scored; samplers wait at this bound."
    )
    start_timeout_seconds: float = Field(
        default=1800, gt=0, description="Longest wait for its model, the download from the hub included."
    )


class QueueConfig(Config):
    """The replay queue's bound. At the bound, producers wait."""

    max_groups: int = Field(default=4096, ge=1, description="Scored groups that may wait for the learner.")
    max_bytes: int = Field(default=1 << 30, ge=1 << 16, description="Their size, in bytes.")
    put_timeout_seconds: float = Field(default=1800, gt=0, description="Longest wait of a producer at the bound.")


class PlacementConfig(Config):
    """Where the engines are placed. All of a job's get their room at the same time, or wait for it together."""

    mode: Literal["dedicated", "colocated"] = Field(
        default="dedicated",
        description=(
            "`dedicated`: each sampler, scorer and learner rank has its share wherever there is room; `colocated`: sampler n and learner rank n "
            "share one machine, and one GPU by the fractions in sampler.gpus and learner.gpus."
        ),
    )
    strategy: Literal["pack", "spread"] = Field(
        default="pack", description="`pack`: on as few machines as possible; `spread`: on as many."
    )
    timeout_seconds: float = Field(
        default=1800, gt=0, description="Longest wait for room on the cluster before the job fails."
    )


class FleetConfig(Config):
    """How workers are watched."""

    lease_seconds: float = Field(
        default=300, ge=5, description="A worker whose controller has been silent for this long exits."
    )
    heartbeat_seconds: float = Field(default=1.0, gt=0, description="How often the controller looks at its workers.")
    max_worker_restarts: int = Field(default=3, ge=0, description="Restarts of one worker before the job fails.")
    max_prompt_attempts: int = Field(
        default=3, ge=1, description="Times that a failed prompt is tried before it is given up."
    )
    max_reloads: int = Field(default=2, ge=0, description="Times that a version is loaded again after a proof failed.")
    progress_timeout_seconds: float = Field(
        default=1800, gt=0, description="The job fails when nothing moved for this long although work is in flight."
    )
    canary_on_cannot_tell: Literal["continue", "stop"] = Field(
        default="continue",
        description=(
            "When two versions differ too little for log-probabilities to tell them apart: `continue` on the digest alone, counted; "
            "or `stop` the job."
        ),
    )
    shutdown_timeout_seconds: float = Field(
        default=30, gt=0, description="Longest wait for a worker to end by itself before it is killed."
    )
