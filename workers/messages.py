"""What workers tell each other and the controller. Plain records: no engine, no ray."""

from __future__ import annotations

from pydantic import Field

from learner.records import Answer, Module, Prompt, Record, Stage


class LoadProof(Record):
    """What a sampler shows after loading a version (rule 4).

    ``digest`` is of the bytes that the loading process itself read; ``measured`` are the log-probabilities that its engine gives the
    manifest's canary texts under this version: one list per text, one entry per token from the second on, in nats.
    """

    sampler: str
    module: Module
    version: int
    digest: str
    measured: tuple[tuple[float, ...], ...]
    seconds: float


class GroupFailure(Record):
    """A group that a sampler could not write or hand on, and why."""

    group_id: str
    attempt: int
    stage: Stage
    reason: str


class SamplerStatus(Record):
    """A sampler at one moment, with the failures since the status before."""

    sampler: str
    in_flight: tuple[str, ...] = Field(description="group ids that it writes, or that the scorer has not stored yet")
    failures: tuple[GroupFailure, ...]
    metrics: dict[str, float]


class EvaluationItem(Record):
    """A held-out prompt to answer once, with its seed."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    seed: int


class EvaluationAnswer(Record):
    """An answer to a held-out prompt, with the log-probabilities that version 0 gives its tokens, for the KL (nats)."""

    prompt: Prompt
    answer: Answer
    reference_logprobs: tuple[float, ...]


class EqualLengthWinRate(Record):
    """The win rate expected of answers of equal length, with its 95 % interval (`learner.evaluation.length_controlled_win_rate`)."""

    mean: float
    low: float
    high: float


class JudgedWinRate(Record):
    """A win rate with its 95 % interval; ties counted one half. A domain's has no ``length_controlled`` one."""

    mean: float
    low: float
    high: float
    tie_rate: float
    count: int
    length_controlled: EqualLengthWinRate | None = None


class DomainWinRate(Record):
    """The win rates of one domain's held-out prompts; ``gold`` where there is a gold judge."""

    judge: JudgedWinRate
    gold: JudgedWinRate | None = None


class Example(Record):
    """One held-out prompt with version 0's answer and the evaluated version's."""

    prompt: Prompt
    before: str
    after: str


class EvaluationResult(Record):
    """One version against version 0 on held-out prompts.

    ``judge`` is the training scorer, ``gold`` the independent one. ``kl_nats`` is the mean over answers of the k3 estimate of
    KL(version || version 0), summed over tokens; ``kl_k1_nats`` the mean log-ratio on the same answers;
    ``entropy_nats_per_token`` the version's entropy, estimated on them too. ``domains`` are the win rates by the prompts' domain,
    where they carry one.
    """

    version: int
    judge: JudgedWinRate
    gold: JudgedWinRate | None
    kl_nats: float
    kl_k1_nats: float
    entropy_nats_per_token: float
    answer_length_tokens: float
    truncated_share: float
    seconds: float
    examples: tuple[Example, ...]
    domains: dict[str, DomainWinRate] = Field(default_factory=dict)

    def as_metrics(self) -> dict[str, float]:
        """The result under stable metric names; those of a domain end in a slash and its name."""
        metrics = {
            "win_rate": self.judge.mean,
            "win_rate_low": self.judge.low,
            "win_rate_high": self.judge.high,
            "tie_rate": self.judge.tie_rate,
            "kl_nats": self.kl_nats,
            "kl_k1_nats": self.kl_k1_nats,
            "entropy_nats_per_token": self.entropy_nats_per_token,
            "answer_length_tokens": self.answer_length_tokens,
            "truncated_share": self.truncated_share,
            "evaluation_seconds": self.seconds,
        }
        if self.gold is not None:
            metrics |= {
                "gold_win_rate": self.gold.mean,
                "gold_win_rate_low": self.gold.low,
                "gold_win_rate_high": self.gold.high,
                "gold_tie_rate": self.gold.tie_rate,
            }
        for prefix, rate in (("", self.judge), ("gold_", self.gold)):
            if rate is not None and rate.length_controlled is not None:
                name, equal = f"{prefix}length_controlled_win_rate", rate.length_controlled
                metrics |= {name: equal.mean, f"{name}_low": equal.low, f"{name}_high": equal.high}
        for domain, rates in self.domains.items():
            for prefix, rate in (("", rates.judge), ("gold_", rates.gold)):
                if rate is not None:
                    metrics |= {
                        f"{prefix}win_rate/{domain}": rate.mean,
                        f"{prefix}win_rate_low/{domain}": rate.low,
                        f"{prefix}win_rate_high/{domain}": rate.high,
                    }
        return metrics
