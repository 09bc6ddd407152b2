"""The scorer's Ray actor: groups of answers in, groups with ordered logits out to the replay queue; and the judging of versions.

``score`` returns when the queue has stored the group: the sampler keeps the group in flight until then (rule 3). At
``resources.scorer.max_waiting_groups`` samplers wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from learner import evaluation, pairing
from learner.config import PairingConfig
from learner.preference import win_matrix
from learner.records import Prompt, ResponseGroup, ScoredGroup, ScorerIdentity
from workers import logs, process_tree
from workers.chat import Verdict
from workers.cluster import Link, WorkerDied, WorkerUnavailable
from workers.config import AnyScorer, FunctionScorer, ScorerConfig, ScorerResources
from workers.leased import LeasedWorker
from workers.messages import EvaluationAnswer, EvaluationResult, Example
from workers.models import require_folder
from workers.scorers.base import Comparison, PreferenceScorer, ScoreResult
from workers.scorers.health import SignalHealth
from workers.scorers.judging import by_domain, judge
from workers.scorers.shuffle import shuffled

MAX_BATCH_GROUPS = 32
"""Groups whose pairs are sorted by length together."""

QUEUE_PAUSE_SECONDS = 0.5
"""Between two tries to reach a replay queue that is being restarted."""


@dataclass(frozen=True)
class ScorerSetup:
    """What one scorer needs to know.

    Attributes:
        queue: name of the replay queue's actor.
        alone: score each group by itself, so that its logits do not depend on which groups arrive together (rule 8).
        tie_margin: of evaluations.
        examples: how many held-out prompts an evaluation shows.
    """

    name: str
    logs: Path
    scorer: ScorerConfig
    resources: ScorerResources
    gold: str | None
    pairing: PairingConfig
    truncated: Literal["keep", "drop", "penalise"]
    queue: str
    put_timeout_seconds: float
    alone: bool
    tie_margin: float
    examples: int = 3


@dataclass
class _Waiting:
    group: ResponseGroup
    scored: asyncio.Future[ScoreResult]


class ScorerWorker(LeasedWorker):
    """A preference scorer in an actor of its own."""

    def __init__(self, setup: ScorerSetup, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.log = logs.write_to(setup.logs, setup.name)
        self.setup = setup
        self.queue = Link(setup.queue)
        self.waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self.room = asyncio.Semaphore(setup.resources.max_waiting_groups)
        self.health = SignalHealth(temperature=setup.scorer.temperature)
        self.scored_groups_total = 0
        self.scoring_seconds_total = 0.0
        self.scorer: PreferenceScorer | None = None
        self.gold: PreferenceScorer | None = None
        self.comparing = asyncio.Lock()
        self.loop_task: asyncio.Task[None] | None = None

    async def start(self) -> ScorerIdentity:
        """Load the scorer's model, and the gold judge where there is one."""
        if self.scorer is None:
            self.scorer = await asyncio.to_thread(self._build, self.setup.scorer.model)
        if self.setup.gold is not None and self.gold is None:
            self.gold = await asyncio.to_thread(self._build, FunctionScorer(name=self.setup.gold))
        if self.loop_task is None:
            self.loop_task = asyncio.create_task(self._score_forever())
            self.log.info("the scorer is up: %r", self.scorer.identity)
        return self.scorer.identity

    async def score(self, group: ResponseGroup) -> str:
        """Score a group and store it in the replay queue. Waits at the bounds; returns what became of the group.

        Raises:
            TimeoutError: the queue stayed full longer than ``resources.queue.put_timeout_seconds``.
        """
        sampled_at = time.time()
        async with self.room:
            waiting = _Waiting(group, asyncio.get_running_loop().create_future())
            await self.waiting.put(waiting)
            result = await waiting.scored
            if self.setup.scorer.shuffle:
                result = shuffled(result, group.group_id)
            scored = ScoredGroup(
                **{name: getattr(group, name) for name in ResponseGroup.model_fields},
                scorer=self._ready().identity,
                ordered_logits=tuple(tuple(float(logit) for logit in row) for row in result.ordered_logits),
                truncated_candidates=result.truncated_candidates,
            )
            skip = pairing.skip_reason(scored, self.setup.pairing, self.setup.truncated, self.setup.scorer.temperature)
            return await self._store(scored, skip, sampled_at)

    async def evaluate(
        self, version: int, began: float, shares: int, *answers: Sequence[EvaluationAnswer]
    ) -> EvaluationResult:
        """Judge a version's answers against version 0's on the same prompts.

        Args:
            version: the version that is judged.
            began: when the evaluation began, in seconds since the epoch.
            shares: how many of ``answers`` are the version's; the rest are version 0's, in the same order of prompts.
            answers: the samplers' shares.
        """
        policy = [answer for share in answers[:shares] for answer in share]
        start = {answer.prompt.id: answer for share in answers[shares:] for answer in share}
        missing = [answer.prompt.id for answer in policy if answer.prompt.id not in start]
        if missing:
            raise ValueError(f"no answer of version 0 to the held-out prompts {missing[:5]}")
        comparisons = [
            Comparison(prompt=answer.prompt, answers=(answer.answer.text, start[answer.prompt.id].answer.text))
            for answer in policy
        ]
        margin, temperature = self.setup.tie_margin, self.setup.scorer.temperature
        with self.activity.busy():
            judged = await asyncio.to_thread(judge, self._ready(), comparisons, margin, temperature)
            gold = None if self.gold is None else await asyncio.to_thread(judge, self.gold, comparisons, margin, 1.0)
        logprobs = [answer.answer.logprobs or () for answer in policy]
        references = [answer.reference_logprobs for answer in policy]
        return EvaluationResult(
            version=version,
            judge=judged.overall,
            gold=None if gold is None else gold.overall,
            kl_nats=evaluation.kl_divergence(logprobs, references, "k3").nats,
            kl_k1_nats=evaluation.kl_divergence(logprobs, references, "k1").nats,
            entropy_nats_per_token=evaluation.entropy_per_token(logprobs),
            answer_length_tokens=float(np.mean([len(answer.answer.token_ids) for answer in policy])),
            truncated_share=float(np.mean([answer.answer.truncated for answer in policy])),
            seconds=time.time() - began,
            examples=tuple(
                Example(prompt=answer.prompt, before=start[answer.prompt.id].answer.text, after=answer.answer.text)
                for answer in policy[: self.setup.examples]
            ),
            domains=by_domain(judged, gold),
        )

    async def compare(self, prompt: Prompt, answers: tuple[str, str]) -> Verdict:
        """Say which of two answers is better, for a person: one comparison at a time, beside the job's own."""
        async with self.comparing:
            comparison = Comparison(prompt=prompt, answers=answers)
            with self.activity.busy():
                (result,) = await asyncio.to_thread(self._ready().score, [comparison])
        temperature = self.setup.scorer.temperature
        return Verdict(
            scorer=self._ready().identity,
            temperature=temperature,
            ordered_logits=tuple(tuple(float(logit) for logit in row) for row in result.ordered_logits),
            win_probability=float(win_matrix(result.ordered_logits, temperature)[0, 1]),
            truncated_candidates=result.truncated_candidates,
        )

    async def metrics(self) -> dict[str, float]:
        """Health of the preference signal since the last call, and totals."""
        health, self.health = self.health, SignalHealth(temperature=self.setup.scorer.temperature)
        return {
            **health.as_metrics(),
            "scored_groups_total": float(self.scored_groups_total),
            "scoring_seconds_total": self.scoring_seconds_total,
            "scorer_waiting_groups": float(self.waiting.qsize()),
        }

    async def stop(self) -> None:
        """Stop scoring."""
        if self.loop_task is not None:
            self.loop_task.cancel()

    def _build(self, config: AnyScorer) -> PreferenceScorer:
        from workers.scorers.build import build_scorer

        if not isinstance(config, FunctionScorer):
            require_folder("scorer.model.model", config.model)
        resources = self.setup.resources
        return build_scorer(
            config, device=resources.device, threads=resources.threads, batch_tokens=resources.batch_tokens
        )

    def _ready(self) -> PreferenceScorer:
        if self.scorer is None:
            raise RuntimeError(f"{self.setup.name} was asked to score before it had started")
        return self.scorer

    async def _store(self, group: ScoredGroup, skip: object, sampled_at: float) -> str:
        limit = time.monotonic() + self.setup.put_timeout_seconds
        while True:
            try:
                return str(
                    await self.queue.call(
                        "put",
                        group,
                        skip,
                        sampled_at,
                        timeout_seconds=self.setup.put_timeout_seconds,
                        setting="resources.queue.put_timeout_seconds",
                    )
                )
            except (WorkerDied, WorkerUnavailable):
                if time.monotonic() > limit:
                    raise
                await asyncio.sleep(QUEUE_PAUSE_SECONDS)

    async def _score_forever(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            while not self.setup.alone and len(batch) < MAX_BATCH_GROUPS and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            comparisons = [
                Comparison(prompt=item.group.prompt, answers=tuple(answer.text for answer in item.group.answers))
                for item in batch
            ]
            began = time.monotonic()
            try:
                with self.activity.busy():
                    results = await asyncio.to_thread(self._ready().score, comparisons)
                if len(results) != len(batch):
                    raise ValueError(f"{len(batch)} groups have {len(results)} results of the scorer")
            except Exception as error:  # the groups carry the error back to the sampler, which reports them as failed
                self.log.exception("scoring %d groups failed", len(batch))
                for item in batch:
                    if not item.scored.done():
                        item.scored.set_exception(error)
                continue
            self.scoring_seconds_total += time.monotonic() - began
            self.scored_groups_total += len(batch)
            for item, comparison, result in zip(batch, comparisons, results, strict=True):
                try:
                    self._check(comparison, result)
                except Exception as error:  # of this group alone
                    if not item.scored.done():
                        item.scored.set_exception(error)
                    continue
                if not item.scored.done():
                    item.scored.set_result(result)

    def _check(self, comparison: Comparison, result: ScoreResult) -> None:
        """Count a result for the signal's health.

        Raises:
            ValueError: it is none.
        """
        if not np.isfinite(result.ordered_logits).all():
            raise ValueError(f"the scorer {self._ready().identity.name} gave a logit that is no finite number")
        self.health.add(comparison, result)
