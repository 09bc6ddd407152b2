"""The trainer: optimizer batches in, adapter versions out.

Keeps rule 2 (it trains on the sampler's token ids), rule 8 (nothing depends on order or on global random state), rule
11 (a snapshot holds all that an exact continuation needs) and rule 12 (the plan never changes the gradient).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from learner.canary_texts import CanaryCandidates, choose_canary
from learner.config import TrainerConfig
from learner.continual import ContinualLearning
from learner.digests import adapter_digest
from learner.errors import InputError
from learner.examples import Example, make_examples, preference_batch, usable_groups
from learner.likelihood import TOKEN_MEASURES, Text, TokenBatch, collate
from learner.objectives.base import BatchStatistics
from learner.objectives.batch import PreferenceBatch
from learner.objectives.parameters import SppoParameters
from learner.objectives.wrappers import Chase
from learner.pairing_rules import resolve_rule
from learner.planner import MicroBatch, plan_micro_batches, plan_share
from learner.policy import FIRST, SECOND, Policy
from learner.preference import fast_vs_slow_win_rate
from learner.ranks import OneRank, Ranks
from learner.records import Answer, CanaryText, Module, ScoredGroup
from learner.reducer import build_reducer
from learner.reference_store import FetchAdapter, ReferenceStore
from learner.reference_values import AGAINST_THE_REFERENCE, OF_THE_REFERENCE, References, ReferenceValues
from learner.roles import RoleSwap
from learner.schedule import LearningRate
from learner.seeds import derive_seed
from learner.step_metrics import logp_metrics, staleness_metrics
from learner.trained import TrainedAdapter
from learner.trainer_state import OPTIMIZER_FILE, SLOW_OPTIMIZER_FILE, STATE_FILE, state_from_files, state_to_bytes

Values = dict[int, ReferenceValues]
"""What an objective reads beside the policy's own pass, of each example of a rank's share."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. ``pairs``: groups learned from; 0: no step was made. ``tokens``: put through."""

    metrics: dict[str, float]
    pairs: int
    tokens: int
    learner_step: int


@dataclass(frozen=True)
class Snapshot:
    """A version of one adapter, ready to be published: its files as bytes, with the trainer's state beside the fast one's.

    ``slow`` is the slow adapter's, where there is one; it consists of the adapter's files alone.
    """

    files: dict[str, bytes]
    digest: str
    learner_step: int
    rank: int
    canary: tuple[CanaryText, ...]
    slow: Snapshot | None = None


@dataclass
class _Pass:
    """What one forward and backward pass over an optimizer batch gave: sums of metrics, and each example's answers' log-probabilities."""

    sums: dict[str, float] = field(default_factory=dict)
    logps: dict[int, list[float]] = field(default_factory=dict)


class Trainer:
    """Trains LoRA adapters on optimizer batches of scored groups: the fast one, and beside it a slow one where the job has it."""

    def __init__(
        self,
        config: TrainerConfig,
        fetch_adapter: FetchAdapter,
        base: PreTrainedModel | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Build the policy that the job starts from.

        Args:
            config: what is trained, and how.
            fetch_adapter: the adapter files of a module's published version, for references.
            base: a model that is already there, instead of loading ``config.policy.model``.
            ranks: the learner's ranks, of which this is one; the only one by default.

        Raises:
            InputError: the model, the adapter or the reference does not fit.
        """
        torch.set_num_threads(config.learner.threads)
        self.config = config
        self.policy = Policy.load(config.policy, config.adapters, config.learner, config.seed, base)
        self._versions = ReferenceStore(self.policy, fetch_adapter, starts_bare=config.policy.adapter is None)
        self.references = References(config, self.policy, self._versions, self._planned)
        self.fast = TrainedAdapter(config, self.policy, FIRST)
        self.slow: TrainedAdapter | None = None
        if config.adapters.slow != "off":
            self.slow = TrainedAdapter(config, self.policy, SECOND, config.adapters.slow_rate_ratio)
        self.learner_step = 0
        self._swap = RoleSwap(config.adapters)
        self._swaps = 0
        # which adapter was the fast one at the versions whose answers may still come, since roles may change in between
        self._fast_at = {0: FIRST}
        self._rate = LearningRate(config.optimizer, config.schedule)
        self.join(ranks or OneRank())
        if config.policy.adapter is not None:
            for module in self.modules:
                self._versions.put(module, 0, self.policy.adapter(self._of(module).slot))
        self._round, self._round_step, self._domain_step = -1, 0, 0
        self.continual = ContinualLearning(config, self.policy, self._planned)
        self._offered: set[str] = set()
        self._candidates = CanaryCandidates()
        self._take_roles(self.fast, self.slow)

    def join(self, ranks: Ranks) -> None:
        """Make the steps from here on as one of ``ranks``, which all stand at the same version."""
        self.ranks = ranks
        self._reducer = build_reducer(self.config.learner.gradient_reducer, ranks)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The adapters that are trained, by their roles."""
        return ("fast",) if self.slow is None else ("fast", "slow")

    def _of(self, module: Module) -> TrainedAdapter:
        trained = self.fast if module == "fast" else self.slow
        assert trained is not None
        return trained

    def _take_roles(self, fast: TrainedAdapter, slow: TrainedAdapter | None) -> None:
        """Say which adapter is the fast one from here on. It is the active one between steps."""
        self.fast, self.slow = fast, slow
        self.references.slow_slot = None if slow is None else slow.slot
        for module in self.modules:
            objective = self._of(module).objective
            if isinstance(objective, Chase):
                objective.role = module
        self.policy.train(fast.slot)

    # Versions

    def begin_version(self, round: int, version: int, domain: str | None = None) -> None:
        """Begin a round, or the next version of it, and with another domain that domain.

        Args:
            round: number of the round.
            version: where it starts, and the reference `round`.
            domain: of the prompts; None where they are mixed. `start` is then the version that the domain began at.
        """
        if domain is not None and domain != self.continual.domain:
            if self.continual.combines and self.continual.domain is not None and not self.continual.ended:
                self.combine()  # of a single domain, which changes nothing but what is trained from here on
            self.continual.enter(domain, version)
            self.references.start = version
            self._domain_step = 0
        if round != self._round:
            self._round, self._round_step = round, 0
        self._fast_at.setdefault(version, self.fast.slot)
        oldest = version - self.config.schedule.max_staleness
        self._fast_at = {number: slot for number, slot in self._fast_at.items() if number >= oldest}
        self.references.round = version
        self.references.forget()
        self._offered.clear()

    def combine(self) -> dict[str, float]:
        """End the domain: the policy becomes the combination of the policies so far, with fresh adapters on top.

        Returns:
            The combination's weights, and how they were found, as metrics.
        """
        metrics = self.continual.combine(self.fast.slot)
        for module in self.modules:
            self._of(module).begin_afresh()
        # equal weights have no past: neither a lead nor a rate that a change of roles left them
        self._swap.begin_afresh()
        self.fast.rate_ratio = 1.0
        if self.slow is not None:
            self.slow.rate_ratio = self.config.adapters.slow_rate_ratio
        self.policy.train(self.fast.slot)
        return metrics

    def add_canary_candidates(self, texts: Sequence[Sequence[int]]) -> None:
        """Texts that the canary may use, as token ids; for version 0, which has no batches behind it."""
        self._candidates.add(texts)

    def snapshot(self, version: int) -> Snapshot:
        """The policy as version ``version``, with all that is needed to go on from it."""
        slow = None if self.slow is None else self._snapshot("slow", version, {}, None)
        state = {
            "version": version,
            "learner_step": self.learner_step,
            "round": self._round,
            "round_step": self._round_step,
            "domain_step": self._domain_step,
            "round_version": self.references.round,
            "continual": self.continual.state_dict(),
            "adapters": {module: self._of(module).state_dict() for module in self.modules},
            "swap": self._swap.state_dict(),
            "swaps": self._swaps,
            "fast_at": list(self._fast_at.items()),
            "canary_candidates": self._candidates.texts,
        }
        files = {OPTIMIZER_FILE: self.fast.optimizer_bytes(), STATE_FILE: state_to_bytes(state)}
        if self.slow is not None:
            files[SLOW_OPTIMIZER_FILE] = self.slow.optimizer_bytes()
        files |= self.continual.to_files(self._slots())
        return self._snapshot("fast", version, files, slow)

    def _snapshot(self, module: Module, version: int, state: Mapping[str, bytes], slow: Snapshot | None) -> Snapshot:
        slot = self._of(module).slot
        files = self.policy.files(slot)
        adapter = self.policy.adapter(slot)
        canary = self._canary(module, version)
        self._versions.put(module, version, adapter)
        return Snapshot({**files, **state}, adapter_digest(files), self.learner_step, adapter.rank, canary, slow)

    def restore(self, files: Mapping[str, bytes], slow_files: Mapping[str, bytes] | None = None) -> None:
        """Go back to a snapshot; what follows is what would have followed then, bit for bit on the same machine.

        Args:
            files: the fast adapter's version.
            slow_files: the slow adapter's, where the job has one.

        Raises:
            InputError: the files do not belong to this job.
        """
        state = state_from_files(files)
        saved = state["adapters"]
        if set(saved) != set(self.modules) or (slow_files is None) != (self.slow is None):
            raise InputError(
                f"{STATE_FILE}: it holds the adapters {', '.join(sorted(saved))}, and this job trains {', '.join(self.modules)}; "
                "resume with the job's own settings"
            )
        if saved["fast"]["slot"] != self.fast.slot:
            assert self.slow is not None
            self._take_roles(self.slow, self.fast)
        self.continual.restore(state["continual"], files, self._slots())
        if not self.continual.combines:
            self.policy.load_files(files, self.fast.slot)
            if slow_files is not None:
                self.policy.load_files(slow_files, self._of("slow").slot)
        for module, optimizer in zip(self.modules, (OPTIMIZER_FILE, SLOW_OPTIMIZER_FILE), strict=False):
            self._of(module).load(saved[module], files[optimizer])
        self.policy.train(self.fast.slot)
        self.learner_step = state["learner_step"]
        self._round, self._round_step, self._domain_step = state["round"], state["round_step"], state["domain_step"]
        self.references.start, self.references.round = self.continual.start_version, state["round_version"]
        self.references.forget()
        self._swap.load_state_dict(state["swap"])
        self._swaps = state["swaps"]
        self._fast_at = dict(state.get("fast_at", ()))  # versions of older releases do not say
        self._candidates = CanaryCandidates(state["canary_candidates"])
        for module in self.modules:
            self._versions.put(module, state["version"], self.policy.adapter(self._of(module).slot))

    def _slots(self) -> dict[str, str]:
        return {module: self._of(module).slot for module in self.modules}

    def _canary(self, module: Module, version: int) -> tuple[CanaryText, ...]:
        texts = self._candidates.texts
        split = [(text[:1], text[1:]) for text in texts]
        current = self.answer_logprobs(split, module=module)
        base = self.answer_logprobs(split, "base")
        previous = None if version == 0 or not texts else self.answer_logprobs(split, version - 1, module)
        return choose_canary(texts, current, base, previous)

    def digests(self) -> tuple[str, ...]:
        """Digests of the adapters as they stand, in the order of ``modules``."""
        return tuple(adapter_digest(self.policy.files(self._of(module).slot)) for module in self.modules)

    # Log-probabilities

    def answer_logprobs(
        self, texts: Sequence[Text], under: int | str = "current", module: Module = "fast"
    ) -> list[list[float]]:
        """Per-token log-probabilities of answers, in nats, without gradients or dropout.

        Args:
            texts: token ids of prompts and answers.
            under: `current`, `base`, or the number of a published version.
            module: whose version.
        """
        if under == "current":
            with self.policy.evaluating(self._of(module).slot):
                return self._logprobs(texts)
        with self.policy.reference(None if under == "base" else self._versions.get(module, int(under))):
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

    def _answer_logps(self, examples: Sequence[Example], module: Module) -> list[list[float]]:
        """Log-probability of each answer of each example under a trained adapter as it stands."""
        texts = [text for example in examples for text in example.texts]
        values = iter([math.fsum(logps) for logps in self.answer_logprobs(texts, module=module)])
        return [[next(values) for _ in example.texts] for example in examples]

    # Steps

    def _examples(self, groups: Sequence[ScoredGroup]) -> list[Example]:
        """What is learned from each of these groups, which are usable. One rule of pairing draws by the log-ratios of all answers."""
        if not groups or resolve_rule(self.config.objective, self.config.pairing) != "did":
            return make_examples(groups, self.config)
        pairing = self.config.pairing.model_copy(update={"rule": "all"})
        everything = SppoParameters(answers="all", reference=self.config.objective.reference)
        whole = make_examples(groups, self.config.model_copy(update={"pairing": pairing, "objective": everything}))
        ratios = []
        for group, example, values in zip(groups, whole, self.references.uncached(whole), strict=True):
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

    def step(self, groups: Sequence[ScoredGroup], newest_version: int) -> StepReport:
        """Make one optimizer step on a whole optimizer batch, of which each rank learns its share.

        Args:
            groups: of the batch, in order.
            newest_version: published so far, which staleness is counted from.

        Raises:
            InputError: an answer's provenance does not fit the reference.
            TrainingError: the gradient is not finite.
            RankLost: another rank is gone or silent.
        """
        usable = usable_groups(groups, self.config)
        examples = self._examples(usable)
        if not examples:
            return StepReport({"pairs": 0.0}, 0, 0, self.learner_step)
        lengths = [example.lengths for example in examples]
        plan = plan_share(lengths, self.config.learner.micro_batch_tokens, self.ranks.rank, self.ranks.size)
        mine = sorted(chain.from_iterable(part.examples for part in plan))
        own = [examples[i] for i in mine]
        requires = self.fast.objective.requires
        values: Values = {i: {} for i in mine}
        if requires & (OF_THE_REFERENCE | {"reference_logps"}):
            values = dict(zip(mine, self.references.values(own, OF_THE_REFERENCE & requires), strict=True))
        chased = self.slow if self.config.adapters.slow == "chase" else None

        # Both see the other as it stands before the step. One pass follows the other, since a switch between a forward and
        # its backward would lose the gradient.
        chases = chased is not None and "other_logps" in requires
        others = dict(zip(mine, self._answer_logps(own, "slow"), strict=True)) if chases else None
        learned = self._learn(self.fast, examples, _with_others(values, others), plan)
        behind = None
        if chased is not None:
            others = {i: learned.logps[i] for i in mine} if chases else None
            behind = self._learn(chased, examples, _with_others(values, others), plan)

        rate = self._rate.at(self.learner_step, self._round_step, self._domain_step)
        records = examples[-1].first + len(examples[-1].selection.records)
        active, share = min(self.ranks.size, len(examples)), sum(len(e.selection.records) for e in own) / records
        used = rate * self.fast.rate_ratio
        norm = self.fast.step(rate, self._reducer, active, share, self.learner_step)
        metrics = {**learned.sums, "gradient_norm": norm, "learning_rate": used, "pairs": float(len(examples))}
        if behind is not None and chased is not None:
            metrics |= {f"slow_{name}": value for name, value in behind.sums.items()}
            metrics["slow_gradient_norm"] = chased.step(rate, self._reducer, active, share, self.learner_step)
        if self.config.adapters.slow == "average":
            self._average()
        self.policy.train(self.fast.slot)
        self.learner_step += 1
        self._round_step += 1
        self._domain_step += 1

        self.continual.remember([group for group in usable if group.group_id not in self._offered])
        self._offered |= {group.group_id for group in usable}
        self._candidates.add([*prompt, *answer] for example in examples for prompt, answer in example.texts)
        metrics["records"] = float(records)
        metrics["clipped_gradient"] = float(norm > self.config.optimizer.max_grad_norm)
        metrics |= logp_metrics(examples, [learned.logps[i] for i in range(len(examples))]) | staleness_metrics(
            usable, examples, newest_version
        )
        metrics |= self._compare(groups, learned, behind)
        tokens = sum(sum(example.lengths) for example in examples)
        return StepReport(metrics, len(examples), tokens, self.learner_step)

    def _learn(
        self,
        trained: TrainedAdapter,
        examples: Sequence[Example],
        values: Values,
        plan: Sequence[MicroBatch],
    ) -> _Pass:
        """One forward and backward pass over the rank's share of the batch with one adapter; its gradient is left on its weights.

        What it returns is of the whole batch.
        """
        self.policy.train(trained.slot)
        self._seed_dropout()
        stats = self._prepare(trained, examples, values, plan)
        count = max(1, stats.count)
        self._seed_dropout()
        trained.zero_grad()
        result = _Pass()
        for micro_batch in plan:
            batch, logps = self._batch(trained, examples, values, micro_batch, nullcontext())
            out = trained.objective(batch, stats)
            (out.loss / count).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
                result.sums[name] = result.sums.get(name, 0.0) + float(value)
            of_answers = iter(logps.detach().tolist())
            for i in micro_batch.examples:
                result.logps[i] = [next(of_answers) for _ in examples[i].texts]
        return self._of_all_ranks(result, count)

    def _seed_dropout(self) -> None:
        """Begin the step's dropout masks: passes over the same micro-batches in the same order have the same ones."""
        if self.config.adapters.dropout > 0:
            of_rank = (self.ranks.rank,) if self.ranks.rank > 0 else ()
            torch.manual_seed(derive_seed(self.config.seed, "dropout", self.learner_step, *of_rank))

    def _of_all_ranks(self, part: _Pass, count: int) -> _Pass:
        """The whole batch's pass, from every rank's: sums over ranks by ``count``, and all answers' log-probabilities."""
        whole = _Pass()
        for sums, logps in self.ranks.gather([part.sums, list(part.logps.items())]):
            for name, value in sums.items():
                whole.sums[name] = whole.sums.get(name, 0.0) + value
            whole.logps |= dict(logps)
        whole.sums = {name: value / count for name, value in whole.sums.items()}
        return whole

    def _batch(
        self,
        trained: TrainedAdapter,
        examples: Sequence[Example],
        values: Values,
        micro_batch: MicroBatch,
        context: AbstractContextManager[None],
    ) -> tuple[PreferenceBatch, Tensor]:
        """The records of a micro-batch with what the objective reads, and the log-probabilities of its answers.

        What is the reference's own comes first: nothing may switch adapters between a forward and its backward.
        ``context`` is what the policy's own pass runs in.
        """
        part = [examples[i] for i in micro_batch.examples]
        tokens = collate(list(chain.from_iterable(example.texts for example in part)), self.policy.device)
        fields = (trained.objective.requires & TOKEN_MEASURES.keys()) - OF_THE_REFERENCE
        hidden = self.references.hidden(part, tokens) if fields & AGAINST_THE_REFERENCE else None
        with context:
            policy = self.policy.likelihood.measure(tokens, frozenset(fields), hidden)
        rows = [values[i] for i in micro_batch.examples]
        return preference_batch(part, policy, rows, self.config.opponent), policy["policy_logps"]

    def _prepare(
        self,
        trained: TrainedAdapter,
        examples: Sequence[Example],
        values: Values,
        plan: Sequence[MicroBatch],
    ) -> BatchStatistics:
        """Phase one of the objective. Only objectives that look at the margins cost a pass over the batch, and every rank gets those of all.

        The pass is the one that is learned from, dropout included, so that what is known of the batch fits its losses.
        """
        records = examples[-1].first + len(examples[-1].selection.records)
        objective = trained.objective
        if not objective.needs_margins:
            return objective.prepare(torch.zeros(records))
        parts: list[tuple[Tensor, Tensor]] = []
        for micro_batch in plan:
            batch, _ = self._batch(trained, examples, values, micro_batch, torch.no_grad())
            assert batch.positions is not None
            parts.append((batch.positions, objective.margins(batch).cpu()))
        if self.ranks.size > 1:
            of_rank = [[positions.tolist(), margins.tolist()] for positions, margins in parts]
            parts = [
                (torch.tensor(positions), torch.tensor(margins))
                for positions, margins in chain.from_iterable(self.ranks.gather(of_rank))
            ]
        positions, margins = (torch.cat(column) for column in zip(*parts, strict=True))
        return objective.prepare(margins[torch.argsort(positions)])

    @torch.no_grad()
    def _average(self) -> None:
        """Move the slow adapter towards the fast one."""
        assert self.slow is not None
        decay, fast = self.config.adapters.slow_decay, self.policy.weights[self.fast.slot]
        for name, weight in self.policy.weights[self.slow.slot].items():
            weight.lerp_(fast[name], 1 - decay)

    def _compare(self, groups: Sequence[ScoredGroup], fast: _Pass, slow: _Pass | None) -> dict[str, float]:
        """How the two adapters stand to each other; lets them change roles where the slow one has done better."""
        if self.slow is None:
            return {}
        metrics: dict[str, float] = {}
        win_rate = fast_vs_slow_win_rate(groups, self.config.temperature, self._role_today)
        if win_rate is not None:
            metrics["fast_vs_slow_win_rate"] = win_rate
        if slow is None:
            return metrics
        if self._swap.observe((_own_loss(fast), _own_loss(slow)), win_rate):
            self._swaps += 1
            if self.config.adapters.swap == "weights":
                self.fast.rate_ratio, self.slow.rate_ratio = self.slow.rate_ratio, self.fast.rate_ratio
            self._take_roles(self.slow, self.fast)
        return metrics | {"role_swaps": float(self._swaps), "first_is_fast": float(self.fast.slot == FIRST)}

    def _role_today(self, answer: Answer) -> Module | None:
        """The role of the adapter that wrote an answer, as roles stand now; None where neither adapter as it is now did."""
        fast_then = None if answer.version is None else self._fast_at.get(answer.version)
        if fast_then is None or answer.module is None:
            return None
        if fast_then == self.fast.slot:
            return answer.module
        return "slow" if answer.module == "fast" else "fast"


def _own_loss(learned: _Pass) -> float:
    """The objective's loss without the chasing term."""
    return learned.sums.get("inner_loss", learned.sums["loss"])


def _with_others(values: Values, others: Mapping[int, list[float]] | None) -> Values:
    """The reference's values, and beside them the other adapter's log-probabilities."""
    return values if others is None else {i: {**of_one, "other_logps": others[i]} for i, of_one in values.items()}
