"""The trainer: optimizer batches in, adapter versions out.

Keeps rule 2 (it trains on the sampler's token ids), rule 8 (nothing depends on order or on global random state), rule
11 (a snapshot holds all that an exact continuation needs) and rule 12 (the plan never changes the gradient).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from learner.canary_texts import CanaryCandidates, choose_canary
from learner.config import TrainerConfig
from learner.digests import adapter_digest
from learner.errors import InputError
from learner.examples import Example, make_examples, preference_batch, usable_groups
from learner.likelihood import TOKEN_MEASURES, Text, TokenBatch, collate
from learner.objectives.base import BatchStatistics
from learner.objectives.batch import PreferenceBatch
from learner.objectives.parameters import SppoParameters
from learner.objectives.registry import build_objective
from learner.pairing_rules import resolve_rule
from learner.planner import MicroBatch, plan_micro_batches
from learner.policy import Policy
from learner.records import CanaryText, ScoredGroup
from learner.reducer import GradientReducer, MeanReducer
from learner.reference_store import ReferenceStore
from learner.references import resolve_reference
from learner.schedule import LearningRate
from learner.seeds import derive_seed
from learner.trainer_state import (
    OPTIMIZER_FILE,
    STATE_FILE,
    build_optimizer,
    optimizer_from_bytes,
    optimizer_to_bytes,
    state_from_files,
    state_to_bytes,
)

ReferenceValues = dict[str, list[float]]
"""The reference's values of an example's answers, by the batch's names for them."""

OF_THE_REFERENCE = frozenset({"mean_entropy"})
"""Values over the whole vocabulary that are the reference's own; the others compare the policy with it."""

AGAINST_THE_REFERENCE = frozenset({"token_kl", "token_kl_products"})


class TrainingError(RuntimeError):
    """Training cannot go on: the numbers are no longer finite."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. ``pairs``: groups learned from; 0: no step was made. ``tokens``: put through."""

    metrics: dict[str, float]
    pairs: int
    tokens: int
    learner_step: int


@dataclass(frozen=True)
class Snapshot:
    """A version, ready to be published: the adapter's files and the trainer's state, as bytes."""

    files: dict[str, bytes]
    digest: str
    learner_step: int
    rank: int
    canary: tuple[CanaryText, ...]


class Trainer:
    """Trains one LoRA adapter on optimizer batches of scored groups."""

    def __init__(
        self,
        config: TrainerConfig,
        fetch_adapter: Callable[[int], Mapping[str, bytes]],
        base: PreTrainedModel | None = None,
        reducer: GradientReducer | None = None,
    ) -> None:
        """Build the policy that the job starts from.

        Args:
            config: what is trained, and how.
            fetch_adapter: the adapter files of a published version, for references.
            base: a model that is already there, instead of loading ``config.policy.model``.
            reducer: how ranks' gradients are combined; one rank's by default.

        Raises:
            InputError: the model, the adapter or the reference does not fit.
        """
        torch.set_num_threads(config.learner.threads)
        self.config = config
        self.reference = resolve_reference(config.objective, config.schedule)
        self.objective = build_objective(config.objective)
        self.policy = Policy.load(config.policy, config.adapters, config.learner, config.seed, base)
        self.optimizer = build_optimizer(config.optimizer, self.policy.parameters)
        self.learner_step = 0
        self._rate = LearningRate(config.optimizer, config.schedule)
        self._reducer = reducer or MeanReducer()
        self._versions = ReferenceStore(self.policy, fetch_adapter, starts_bare=config.policy.adapter is None)
        if config.policy.adapter is not None:
            self._versions.put(0, self.policy.state())
        self._round, self._round_step, self._round_version = -1, 0, 0
        self._reference_cache: dict[str, ReferenceValues] = {}
        self._candidates = CanaryCandidates()

    # Versions

    def begin_version(self, round: int, version: int) -> None:
        """Begin a round, or the next version of it. ``version`` is where it starts, and the reference `round`."""
        if round != self._round:
            self._round, self._round_step = round, 0
        self._round_version = version
        self._reference_cache.clear()

    def add_canary_candidates(self, texts: Sequence[Sequence[int]]) -> None:
        """Texts that the canary may use, as token ids; for version 0, which has no batches behind it."""
        self._candidates.add(texts)

    def snapshot(self, version: int) -> Snapshot:
        """The policy as version ``version``, with all that is needed to go on from it."""
        files = self.policy.files()
        canary = self._canary(version)
        self._versions.put(version, self.policy.state())
        state = {
            "version": version,
            "learner_step": self.learner_step,
            "round": self._round,
            "round_step": self._round_step,
            "round_version": self._round_version,
            "objective": self.objective.state_dict(),
            "canary_candidates": self._candidates.texts,
        }
        digest = adapter_digest(files)
        files[OPTIMIZER_FILE] = optimizer_to_bytes(self.optimizer, self.policy.parameters)
        files[STATE_FILE] = state_to_bytes(state)
        return Snapshot(files, digest, self.learner_step, self.config.adapters.rank, canary)

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Go back to a snapshot; what follows is what would have followed then, bit for bit on the same machine.

        Raises:
            InputError: the files do not belong to this job.
        """
        state = state_from_files(files)
        self.policy.load_files(files)
        self.optimizer = build_optimizer(self.config.optimizer, self.policy.parameters)
        optimizer_from_bytes(files[OPTIMIZER_FILE], self.optimizer, self.policy.parameters)
        self.objective.load_state_dict(state["objective"])
        self.learner_step = state["learner_step"]
        self._round, self._round_step = state["round"], state["round_step"]
        self._round_version = state["round_version"]
        self._candidates = CanaryCandidates(state["canary_candidates"])
        self._reference_cache.clear()
        self._versions.put(state["version"], self.policy.state())

    def _canary(self, version: int) -> tuple[CanaryText, ...]:
        texts = self._candidates.texts
        split = [(text[:1], text[1:]) for text in texts]
        current = self.answer_logprobs(split)
        base = self.answer_logprobs(split, "base")
        previous = None if version == 0 or not texts else self.answer_logprobs(split, version - 1)
        return choose_canary(texts, current, base, previous)

    # Log-probabilities

    def answer_logprobs(self, texts: Sequence[Text], under: int | str = "current") -> list[list[float]]:
        """Per-token log-probabilities of answers, in nats, without gradients or dropout.

        Args:
            texts: token ids of prompts and answers.
            under: `current`, `base`, or the number of a published version.
        """
        if under == "current":
            with self.policy.evaluating():
                return self._logprobs(texts)
        with self.policy.reference(None if under == "base" else self._versions.get(int(under))):
            return self._logprobs(texts)

    def _logprobs(self, texts: Sequence[Text]) -> list[list[float]]:
        result: list[list[float]] = [[] for _ in texts]
        for members, batch in self._planned(texts):
            parts = torch.split(self.policy.likelihood.token_logps(batch).cpu(), list(batch.counts))
            for i, part in zip(members, parts, strict=True):
                result[i] = part.tolist()
        return result

    def _planned(self, texts: Sequence[Text]) -> Iterator[tuple[tuple[int, ...], TokenBatch]]:
        """Texts as batches within the token budget, with their places."""
        lengths = [[len(prompt) + len(answer)] for prompt, answer in texts]
        for micro_batch in plan_micro_batches(lengths, self.config.learner.micro_batch_tokens):
            yield micro_batch.examples, collate([texts[i] for i in micro_batch.examples], self.policy.device)

    def _reference_versions(self, example: Example) -> list[int]:
        """The version that each answer of an example is compared with."""
        if self.reference == "start":
            return [0] * len(example.texts)
        versions = [answer.version for answer in example.answers]
        known = [version for version in versions if version is not None]
        if self.reference == "behaviour":
            if len(known) < len(versions):
                raise InputError(
                    f"group {example.group_id}: answers from outside carry no version, so objective.reference: behaviour "
                    "has nothing to compare them with; use dpo with reference start or round"
                )
            return known
        foreign = any(version != self._round_version for version in known)  # answers from outside have none
        if self.config.objective.kind == "sppo" and foreign:
            raise InputError(
                f"group {example.group_id}: its answers come from versions {versions}, not from the round's version "
                f"{self._round_version}; with objective.reference: round SPPO learns from the round's own answers only"
            )
        return [self._round_version] * len(versions)

    def _reference_values(self, examples: Sequence[Example]) -> list[ReferenceValues]:
        """The reference's values of each example's answers; remembered within a round, for further passes."""
        fields = OF_THE_REFERENCE & self.objective.requires
        new = [example for example in examples if example.group_id not in self._reference_cache]
        wanted: dict[int, list[tuple[Example, int]]] = {}
        for example in new:
            for place, version in enumerate(self._reference_versions(example)):
                wanted.setdefault(version, []).append((example, place))
        found = {
            example.group_id: {name: [math.nan] * len(example.texts) for name in ("reference_logps", *sorted(fields))}
            for example in new
        }
        for version in sorted(wanted):
            texts = [example.texts[place] for example, place in wanted[version]]
            with self.policy.reference(self._versions.get(version)):
                for members, batch in self._planned(texts):
                    values = self.policy.likelihood.measure(batch, fields)
                    values["reference_logps"] = values.pop("policy_logps")
                    for name, column in values.items():
                        for member, value in zip(members, column.tolist(), strict=True):
                            example, place = wanted[version][member]
                            found[example.group_id][name][place] = value
        result = [found.get(e.group_id) or self._reference_cache[e.group_id] for e in examples]
        if self.config.schedule.stop_after_epochs > 1:
            self._reference_cache.update(found)
        return result

    def _reference_hidden(self, examples: Sequence[Example], batch: TokenBatch) -> Tensor:
        """``[M, H]``: the reference's hidden states of the answers' tokens, each text's under its own version."""
        versions = torch.tensor([v for example in examples for v in self._reference_versions(example)])
        of_token = versions.to(batch.rows.device)[batch.rows]
        hidden: Tensor | None = None
        for version in sorted(set(versions.tolist())):
            with self.policy.reference(self._versions.get(version)):
                states = self.policy.likelihood.hidden(batch)
            hidden = states if hidden is None else torch.where((of_token == version)[:, None], states, hidden)
        assert hidden is not None
        return hidden

    # Steps

    def _examples(self, groups: Sequence[ScoredGroup]) -> list[Example]:
        """What is learned from each usable group. One rule of pairing draws by the log-ratios of all answers."""
        groups = usable_groups(groups, self.config)
        if not groups or resolve_rule(self.config.objective, self.config.pairing) != "did":
            return make_examples(groups, self.config)
        pairing = self.config.pairing.model_copy(update={"rule": "all"})
        everything = SppoParameters(answers="all", reference=self.config.objective.reference)
        whole = make_examples(groups, self.config.model_copy(update={"pairing": pairing, "objective": everything}))
        ratios = []
        for group, example, values in zip(groups, whole, self._uncached(whole), strict=True):
            of_answer = [0.0] * len(group.answers)
            for index, answer, reference in zip(
                example.selection.indices, example.answers, values["reference_logps"], strict=True
            ):
                if answer.logprobs is None:
                    raise InputError(
                        f"group {group.group_id}: pairing.rule: did draws by how likely the policy was to write an answer, "
                        "and answers from outside do not say; use best-worst"
                    )
                of_answer[index] = math.fsum(answer.logprobs) - reference
            ratios.append(of_answer)
        return make_examples(groups, self.config, ratios)

    def _uncached(self, examples: Sequence[Example]) -> list[ReferenceValues]:
        cache, self._reference_cache = self._reference_cache, {}
        try:
            return self._reference_values(examples)
        finally:
            self._reference_cache = cache

    def step(self, groups: Sequence[ScoredGroup], newest_version: int) -> StepReport:
        """Make one optimizer step on a whole optimizer batch.

        Args:
            groups: of the batch, in order.
            newest_version: published so far, which staleness is counted from.

        Raises:
            InputError: an answer's provenance does not fit the reference.
            TrainingError: the gradient is not finite.
        """
        examples = self._examples(groups)
        if not examples:
            return StepReport({"pairs": 0.0}, 0, 0, self.learner_step)
        reads_reference = bool(self.objective.requires & (OF_THE_REFERENCE | {"reference_logps"}))
        references = self._reference_values(examples) if reads_reference else None
        plan = plan_micro_batches([example.lengths for example in examples], self.config.learner.micro_batch_tokens)
        stats = self._prepare(examples, references, plan)
        count = max(1, stats.count)

        if self.config.adapters.dropout > 0:
            torch.manual_seed(derive_seed(self.config.seed, "dropout", self.learner_step))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        policy_logps: list[list[float]] = [[] for _ in examples]
        for micro_batch in plan:
            batch, logps = self._batch(examples, references, micro_batch, nullcontext())
            out = self.objective(batch, stats)
            (out.loss / count).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            values = iter(logps.detach().tolist())
            for i in micro_batch.examples:
                policy_logps[i] = [next(values) for _ in examples[i].texts]

        rate = self._rate.at(self.learner_step, self._round_step)
        norm = self._update(rate)
        self._candidates.add([*prompt, *answer] for example in examples for prompt, answer in example.texts)
        metrics = {name: value / count for name, value in sums.items()}
        metrics |= {"gradient_norm": norm, "learning_rate": rate, "pairs": float(len(examples))}
        metrics["records"] = float(sum(len(example.selection.records) for example in examples))
        metrics["clipped_gradient"] = float(norm > self.config.optimizer.max_grad_norm)
        metrics |= _logp_metrics(examples, policy_logps) | _staleness_metrics(
            examples, newest_version, self.config.opponent_version
        )
        tokens = sum(sum(example.lengths) for example in examples)
        return StepReport(metrics, len(examples), tokens, self.learner_step)

    def _batch(
        self,
        examples: Sequence[Example],
        references: list[ReferenceValues] | None,
        micro_batch: MicroBatch,
        context: AbstractContextManager[None],
    ) -> tuple[PreferenceBatch, Tensor]:
        """The records of a micro-batch with what the objective reads, and the log-probabilities of its answers.

        What is the reference's own comes first: nothing may switch adapters between a forward and its backward.
        ``context`` is what the policy's own pass runs in.
        """
        part = [examples[i] for i in micro_batch.examples]
        tokens = collate(list(chain.from_iterable(example.texts for example in part)), self.policy.device)
        fields = (self.objective.requires & TOKEN_MEASURES.keys()) - OF_THE_REFERENCE
        hidden = self._reference_hidden(part, tokens) if fields & AGAINST_THE_REFERENCE else None
        with context:
            policy = self.policy.likelihood.measure(tokens, frozenset(fields), hidden)
        rows = None if references is None else [references[i] for i in micro_batch.examples]
        return preference_batch(part, policy, rows, self.config.opponent_version), policy["policy_logps"]

    def _prepare(
        self, examples: Sequence[Example], references: list[ReferenceValues] | None, plan: Sequence[MicroBatch]
    ) -> BatchStatistics:
        """Phase one of the objective. Only objectives that look at the margins cost a pass over the batch."""
        records = examples[-1].first + len(examples[-1].selection.records)
        if not self.objective.needs_margins:
            return self.objective.prepare(torch.zeros(records))
        parts: list[tuple[Tensor, Tensor]] = []
        for micro_batch in plan:
            batch, _ = self._batch(examples, references, micro_batch, self.policy.evaluating())
            assert batch.positions is not None
            parts.append((batch.positions, self.objective.margins(batch).cpu()))
        positions, margins = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.objective.prepare(margins[torch.argsort(positions)])

    def _update(self, rate: float) -> float:
        """Reduce, clip and step; returns the gradient's norm before clipping."""
        weights = list(self.policy.parameters.values())
        self._reducer.reduce(weights)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, self.config.optimizer.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite at learner step {self.learner_step}; lower optimizer.learning_rate, "
                "or use policy.dtype: float32 or bfloat16"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.learner_step += 1
        self._round_step += 1
        return norm


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _logp_metrics(examples: Sequence[Example], policy_logps: Sequence[Sequence[float]]) -> dict[str, float]:
    """Log-probabilities of the best and the worst answers, in nats, before the step.

    Their change is counted from the policy that wrote the answer, by the sampler's own log-probabilities: in rounds
    that is the policy at the round's start, or the opponent. Answers from outside, which have none, do not enter.
    """
    metrics = {"answer_length_tokens": _mean([float(len(answer)) for e in examples for _, answer in e.texts])}
    for name, place in (("chosen", 0), ("rejected", -1)):
        metrics[f"{name}_logp"] = _mean([logps[place] for logps in policy_logps])
        changes = [
            logps[place] - math.fsum(written)
            for example, logps in zip(examples, policy_logps, strict=True)
            if (written := example.answers[place].logprobs) is not None
        ]
        if changes:
            metrics[f"{name}_logp_change"] = _mean(changes)
    return metrics


def _staleness_metrics(
    examples: Sequence[Example], newest_version: int, opponent_version: int | None
) -> dict[str, float]:
    """How many versions old the policy's own answers are; an opponent is older by design."""
    versions = [a.version for example in examples for a in example.answers if a.version not in (None, opponent_version)]
    ages = [newest_version - version for version in versions if version is not None]
    return {"staleness_mean": _mean([float(age) for age in ages]), "staleness_max": float(max(ages))} if ages else {}
