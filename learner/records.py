"""The records that travel round the loop: prompts, answers, groups, tickets and version manifests.

Rule 1: every answer says where it came from. The records are plain data (pydantic, no torch), so every process can read them,
and they are written as JSON, never pickled.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]
Module = Literal["fast", "slow"]


class Record(BaseModel):
    """Base of all records: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPart(Record):
    """One piece of a message. Text for now; images by hash can join the union later (rule 14)."""

    type: Literal["text"] = "text"
    text: str


class Message(Record):
    """One chat turn."""

    role: Role
    content: tuple[TextPart, ...]

    @property
    def text(self) -> str:
        """The turn's text parts, joined."""
        return "".join(part.text for part in self.content)

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        """A turn of one text part."""
        return cls(role=role, content=(TextPart(text=text),))


class Prompt(Record):
    """What the policy is asked: chat messages that end with a user turn."""

    id: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    domain: str | None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Prompt:
        if self.messages[-1].role != "user":
            raise ValueError(f"the last message must be the user's, not the {self.messages[-1].role}'s")
        return self

    @classmethod
    def of(cls, id: str, text: str, domain: str | None = None) -> Prompt:
        """A prompt of a single user turn."""
        return cls(id=id, messages=(Message.of("user", text),), domain=domain)


class AnswerSource(StrEnum):
    """Who wrote an answer."""

    POLICY = "policy"
    FEEDBACK = "feedback"
    FILE = "file"


class FinishReason(StrEnum):
    """Why an answer ends: EOS, the token limit, or it was given from outside."""

    STOP = "stop"
    LENGTH = "length"
    GIVEN = "given"


class SamplingParameters(Record):
    """How an answer was drawn."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0, description="0: no limit")
    max_tokens: int = Field(ge=1)


class Answer(Record):
    """One answer with its provenance (rule 1).

    ``token_ids`` are the sampler's own and include the EOS token once where ``finish_reason`` is ``stop`` (rule 2);
    ``logprobs`` are the sampler's, one per token, in nats, raw (before temperature and truncation).
    Answers from outside have no module, version or digest.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    finish_reason: FinishReason
    source: AnswerSource = AnswerSource.POLICY
    module: Module | None = None
    version: int | None = Field(default=None, ge=0)
    adapter_digest: str | None = None
    sampling: SamplingParameters | None = None
    seed: int | None = None
    sampler: str | None = Field(default=None, description="name of the sampler that wrote it")

    @model_validator(mode="after")
    def _provenance_is_complete(self) -> Answer:
        if self.source is AnswerSource.POLICY:
            missing = [
                name
                for name in ("logprobs", "module", "version", "adapter_digest", "sampling", "seed", "sampler")
                if getattr(self, name) is None
            ]
            if missing:
                raise ValueError(f"an answer of the policy must carry {', '.join(missing)}")
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} log-probabilities for {len(self.token_ids)} tokens")
        return self

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut off by the token limit, without EOS."""
        return self.finish_reason is FinishReason.LENGTH


class Share(Record):
    """Some of a prompt's answers, and the adapter that writes them."""

    module: Module
    version: int = Field(ge=0)
    answers: int = Field(ge=1)


class Ticket(Record):
    """The controller's leave to write one group (rule 7). It names the version to use.

    ``index`` counts tickets within a round from 0 and fixes the order in which groups are learned from (rule 8);
    ``seed`` is the seed of answer 0, answer k takes ``seed + k``. ``shares`` say who writes the answers, in this order: ``version`` itself,
    and perhaps its slow adapter or an older version (``sampling.policy``, ``sampling.opponent``). ``source``: where the answers come from;
    samplers get the policy's, and others have no shares.
    """

    group_id: str
    source: AnswerSource = AnswerSource.POLICY
    round: int = Field(ge=0)
    index: int = Field(ge=0)
    version: int = Field(ge=0)
    shares: tuple[Share, ...] = ()
    seed: int = Field(ge=0)
    attempt: int = Field(default=0, ge=0)
    prompt: Prompt
    prompt_token_ids: tuple[int, ...] = Field(min_length=1)


class ResponseGroup(Record):
    """One prompt with its K answers."""

    group_id: str
    round: int
    index: int
    version: int = Field(
        description="the newest version among the answers' versions: the policy's, which staleness is measured from"
    )
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    answers: tuple[Answer, ...] = Field(min_length=2)


class ScorerIdentity(Record):
    """Which scorer compared the answers: its kind, its name and a digest of its weights or its release."""

    kind: str
    name: str
    version: str


class ScoredGroup(ResponseGroup):
    """A group with the scorer's ordered logits.

    ``ordered_logits[i][j]`` is the scorer's logit that answer i beats answer j when i is shown first; the diagonal is 0.
    Everything else (win matrix, win probabilities, margins) is derived from them in ``learner.preference``.
    """

    scorer: ScorerIdentity
    ordered_logits: tuple[tuple[float, ...], ...]
    truncated_candidates: int = Field(default=0, ge=0, description="answers that the scorer had to cut")

    @model_validator(mode="after")
    def _logits_are_square(self) -> ScoredGroup:
        k = len(self.answers)
        if len(self.ordered_logits) != k or any(len(row) != k for row in self.ordered_logits):
            raise ValueError(f"ordered logits must be {k} x {k} for {k} answers")
        return self


class GroupState(StrEnum):
    """Where a group stands in the replay ledger (rule 3)."""

    GRANTED = "granted"
    """A ticket was granted; no scored group has arrived yet."""
    READY = "ready"
    """Scored and waiting for the learner."""
    LEASED = "leased"
    """Handed to the learner as part of an optimizer batch."""
    CONSUMED = "consumed"
    """Applied, and committed with the version that it produced."""
    SKIPPED = "skipped"
    """Not usable, with a reason: identical answers, ties, too few answers left."""
    EXPIRED = "expired"
    """Older than the staleness bound when the learner asked for it."""
    FAILED = "failed"
    """Given up after its retries, with the stage that failed."""


class SkipReason(StrEnum):
    """Why a scored group was not worth learning from."""

    IDENTICAL = "identical_answers"
    TIE = "tie"
    TRUNCATED = "truncated_answers"


class Stage(StrEnum):
    """The stage at which a group can fail."""

    SAMPLER = "sampler"
    SCORER = "scorer"
    QUEUE = "queue"


class FileEntry(Record):
    """One file of a version: its SHA-256 as hex, and its size in bytes."""

    sha256: str
    bytes: int


class CanaryText(Record):
    """A text on which neighbouring versions differ, with the learner's log-probabilities of its tokens (rule 4).

    ``token_ids`` is the whole text; each list of log-probabilities has one entry per token from the second on, in nats.
    ``previous`` is absent for version 0.
    """

    token_ids: tuple[int, ...] = Field(min_length=2)
    current: tuple[float, ...]
    base: tuple[float, ...]
    previous: tuple[float, ...] | None = None


class VersionManifest(Record):
    """What a published policy version consists of (rules 4, 5 and 11).

    ``digest`` identifies the adapter: ``learner.digests.adapter_digest`` of the adapter's files.
    ``files`` lists every file of the version, the trainer's state included.
    """

    job_id: str
    module: Module
    version: int = Field(ge=0)
    learner_step: int = Field(ge=0)
    digest: str
    files: dict[str, FileEntry]
    base_model: str
    rank: int
    canary: tuple[CanaryText, ...] = ()
    created_at: datetime

    @property
    def name(self) -> str:
        """``{job}/{module}/v{n}``: unique, and never given to other bytes."""
        return f"{self.job_id}/{self.module}/v{self.version}"


class PolicyVersion(Record):
    """One publication: the manifests of its adapters, the fast one's first. They have one number, and are synced together."""

    manifests: tuple[VersionManifest, ...] = Field(min_length=1)

    @property
    def fast(self) -> VersionManifest:
        """The fast adapter's manifest, which carries the trainer's state."""
        return self.manifests[0]

    @property
    def version(self) -> int:
        """Its number."""
        return self.fast.version

    @property
    def learner_step(self) -> int:
        """Optimizer steps behind it."""
        return self.fast.learner_step


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a version that make up the adapter, in peft's own layout."""
