"""Learning domain after domain: fresh adapters on a frozen combination, memories, and the weights that combine (COFS-DPO).

arXiv 2406.05534 combines the domains' fast adapters linearly. How it finds the weights could not be verified, so this is a
reconstruction; ``learner.combination`` has the algebra and ``learner.combination_weights`` the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learner.adapter_files import bytes_to_tensors, tensors_to_bytes
from learner.combination import Adapter, DomainHistory
from learner.combination_weights import memory_loss, solve_weights
from learner.config import TrainerConfig
from learner.errors import InputError
from learner.examples import make_examples
from learner.likelihood import Text
from learner.objectives.parameters import DpoParameters
from learner.policy import Policy
from learner.preference_memory import PreferenceMemory
from learner.records import ScoredGroup
from learner.reference_values import Planned

MOST_EVALUATIONS = 200
"""Weights that are tried for three domains or more; each costs a pass over all memories."""


class ContinualLearning:
    """What a job keeps of the domains behind it.

    Attributes:
        domain: the one that is being learned; None before the first, and where prompts are mixed.
        start_version: the version that it began at.
        weights: of the domains in the frozen combination; empty before the first has ended.
    """

    def __init__(self, config: TrainerConfig, policy: Policy, planned: Planned) -> None:
        self.schedule = config.schedule
        self.domain: str | None = None
        self.start_version = 0
        self.weights: tuple[float, ...] = ()
        self._config, self._policy, self._planned = config, policy, planned
        self._history = DomainHistory()
        self._memories: dict[str, PreferenceMemory] = {}

    @property
    def combines(self) -> bool:
        """Whether domains get adapters of their own, which are combined."""
        return self.schedule.combine != "none"

    @property
    def ended(self) -> bool:
        """Whether the domain's adapter is in the combination already."""
        return self.domain in self._history.domains

    def enter(self, domain: str, version: int) -> None:
        """Begin a domain at ``version``."""
        self.domain, self.start_version = domain, version
        if self.schedule.combine == "cofs":
            self._memories[domain] = PreferenceMemory(
                self.schedule.memory_share, self.schedule.memory_bytes, self.schedule.memory_rule, self._config.seed
            )

    def remember(self, groups: Sequence[ScoredGroup]) -> None:
        """Offer groups that were learned from to the domain's memory. Each group is to be offered once."""
        if self.domain in self._memories:
            for group in groups:
                self._memories[self.domain].offer(group)

    def combine(self, slot: str) -> dict[str, float]:
        """End the domain: keep its fast adapter, weigh the policies so far, and freeze their combination.

        The trained adapters are fresh afterwards, so that the policy is the combination itself. One weight is searched
        for each domain; the memories' loss is measured against the bare model.

        Args:
            slot: which of the policy's adapters is the fast one.

        Returns:
            The weights, and the memories' losses, as metrics.

        Raises:
            InputError: a domain's memory is empty.
        """
        assert self.domain is not None
        start = self._history.coefficients(self.weights) if self.weights else ()
        self._history.add(self.domain, self._policy.increment(slot), start)
        count = len(self._history)
        metrics: dict[str, float] = {}
        if self.domain in self._memories:
            self._memories[self.domain].seal()
        if count == 1 or self.schedule.combine == "last":
            self.weights = (*(0.0,) * (count - 1), 1.0)
        elif self.schedule.combine == "mean":
            self.weights = (1 / count,) * count
        else:
            self.weights, metrics = self._solve()
        self._policy.freeze(self._history.adapter(self.weights))
        self._policy.begin_afresh()
        named = zip(self._history.domains, self.weights, strict=True)
        return metrics | {f"combination_weight/{name}": weight for name, weight in named}

    def _solve(self) -> tuple[tuple[float, ...], dict[str, float]]:
        """The weights on the simplex that the memories like best."""
        texts = [self._pairs(name) for name in self._history.domains]
        everything = [text for domain in texts for text in domain]
        reference = self._leads(everything, None)
        sizes = [len(domain) // 2 for domain in texts]
        beta = self._config.objective.summed_beta

        def loss(weights: Sequence[float]) -> float:
            margins = self._leads(everything, self._history.adapter(weights)) - reference
            return memory_loss(torch.split(margins, sizes), beta)

        found = solve_weights(loss, len(sizes), max_evaluations=MOST_EVALUATIONS)
        last = (*(0.0,) * (len(sizes) - 1), 1.0)
        return found.weights, {
            "memory_pairs": float(sum(sizes)),
            "memory_loss": found.loss,
            "memory_loss_of_last": loss(last),
            "combination_evaluations": float(found.evaluations),
        }

    def _pairs(self, domain: str) -> list[Text]:
        """The memory's best and worst answers by turns.

        Raises:
            InputError: there are none.
        """
        groups = self._memories[domain].groups
        if not groups:
            raise InputError(
                f"schedule.combine: cofs weighs domain {domain} by its memory, which is empty; raise schedule.memory_bytes"
            )
        pairing = self._config.pairing.model_copy(update={"rule": "best-worst"})
        config = self._config.model_copy(update={"pairing": pairing, "objective": DpoParameters()})
        return [text for example in make_examples(groups, config) for text in example.texts]

    def _leads(self, texts: Sequence[Text], adapter: Adapter | None) -> Tensor:
        """``[pairs]`` float64: log-probability of each pair's first text minus the second's, under a policy."""
        values = torch.zeros(len(texts), dtype=torch.float64)
        with self._policy.reference(adapter):
            for members, batch in self._planned(texts):
                logps = self._policy.likelihood.measure(batch)["policy_logps"]
                values[torch.tensor(members)] = logps.to("cpu", torch.float64)
        return values[0::2] - values[1::2]

    # State

    def state_dict(self) -> dict[str, Any]:
        """Where the job stands, as numbers and names that JSON can hold."""
        return {"domain": self.domain, "start_version": self.start_version, "weights": list(self.weights)}

    def to_files(self, slots: Mapping[str, str]) -> dict[str, bytes]:
        """Increments and memories as files; none where domains are not combined.

        Args:
            slots: of each module which of the policy's adapters it is; their weights go on without what is frozen.
        """
        if not self.combines:
            return {}
        files = self._history.to_files()
        files |= {
            f"trained-{module}.safetensors": tensors_to_bytes(self._policy.state(s)) for module, s in slots.items()
        }
        return files | {_memory_file(i): m.to_bytes() for i, m in enumerate(self._memories.values())}

    def restore(self, state: Mapping[str, Any], files: Mapping[str, bytes], slots: Mapping[str, str]) -> None:
        """Go back to a saved state, trained weights included.

        Raises:
            InputError: a file is missing or of another job.
        """
        self.domain, self.start_version = state["domain"], state["start_version"]
        self.weights = tuple(state["weights"])
        if not self.combines:
            return
        self._history = DomainHistory.from_files(files)
        learned = self._history.domains
        names = [*learned, *([self.domain] if self.domain is not None and self.domain not in learned else [])]
        self._memories = {}
        if self.schedule.combine == "cofs":
            self._memories = {
                name: PreferenceMemory.from_bytes(_needed(files, _memory_file(i))) for i, name in enumerate(names)
            }
        self._policy.freeze(self._history.adapter(self.weights) if self.weights else None)
        for module, slot in slots.items():
            self._policy.load_state(bytes_to_tensors(_needed(files, f"trained-{module}.safetensors")), slot)


def _memory_file(domain: int) -> str:
    return f"memory-{domain:03d}.jsonl"


def _needed(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise InputError(
            f"the version lacks {name}, so training cannot go on from it; resume with the job's own settings"
        )
    return files[name]
