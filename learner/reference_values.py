"""What the reference says of the answers that are trained on: log-probabilities, entropies, hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from learner.config import TrainerConfig
from learner.errors import InputError
from learner.examples import Example
from learner.likelihood import Text, TokenBatch
from learner.policy import Policy
from learner.records import Module
from learner.reference_store import ReferenceStore
from learner.references import resolve_reference

ReferenceValues = dict[str, list[float]]
"""The reference's values of an example's answers, by the batch's names for them."""

ReferenceKey = tuple[Module, int]
"""A published version of a module. The slow adapter as it stands, which has no number yet, is version -1."""

MOVING: ReferenceKey = ("slow", -1)

OF_THE_REFERENCE = frozenset({"mean_entropy"})
"""Values over the whole vocabulary that are the reference's own; the others compare the policy with it."""

AGAINST_THE_REFERENCE = frozenset({"token_kl", "token_kl_products"})

Planned = Callable[[Sequence[Text]], Iterator[tuple[tuple[int, ...], TokenBatch]]]
"""Lays texts out in batches within the token budget, with their places."""


class References:
    """Chooses the reference of each answer, and measures under it.

    Attributes:
        start: version that the reference `start` means: 0, or the one that the domain began at.
        round: version that the reference `round` means.
        slow_slot: which of the policy's adapters is the slow one, where there is one.
    """

    def __init__(self, config: TrainerConfig, policy: Policy, versions: ReferenceStore, planned: Planned) -> None:
        self.kind = resolve_reference(config.objective, config.schedule)
        self.start, self.round = 0, 0
        self.slow_slot: str | None = None
        self._sppo = config.objective.kind == "sppo"
        # the slow adapter moves with every step, so that what was measured once does not hold in the next pass
        self._remembers = config.schedule.stop_after_epochs > 1 and self.kind != "slow"
        self._policy, self._versions, self._planned = policy, versions, planned
        self._cache: dict[str, ReferenceValues] = {}

    def forget(self) -> None:
        """Forget what was measured: a new round or a restart begins."""
        self._cache.clear()

    def keys(self, example: Example) -> list[ReferenceKey]:
        """The version that each answer of an example is compared with.

        Raises:
            InputError: an answer's provenance does not fit the reference.
        """
        if self.kind == "start":
            return [("fast", self.start)] * len(example.texts)
        if self.kind == "slow":
            return [MOVING] * len(example.texts)
        versions = [answer.version for answer in example.answers]
        known = [
            (answer.module, answer.version)
            for answer in example.answers
            if answer.module is not None and answer.version is not None
        ]
        if self.kind == "behaviour":
            if len(known) < len(versions):
                raise InputError(
                    f"group {example.group_id}: answers from outside carry no version, so objective.reference: behaviour "
                    "has nothing to compare them with; use dpo with reference start or round"
                )
            return known
        foreign = any(version != self.round for _, version in known)  # answers from outside have none
        if self._sppo and foreign:
            raise InputError(
                f"group {example.group_id}: its answers come from versions {versions}, not from the round's version "
                f"{self.round}; with objective.reference: round SPPO learns from the round's own answers only"
            )
        return [("fast", self.round)] * len(versions)

    def values(self, examples: Sequence[Example], fields: frozenset[str] = frozenset()) -> list[ReferenceValues]:
        """The reference's values of each example's answers; remembered within a round, for further passes."""
        new = [example for example in examples if example.group_id not in self._cache]
        wanted: dict[ReferenceKey, list[tuple[Example, int]]] = {}
        for example in new:
            for place, key in enumerate(self.keys(example)):
                wanted.setdefault(key, []).append((example, place))
        found = {
            example.group_id: {name: [math.nan] * len(example.texts) for name in ("reference_logps", *sorted(fields))}
            for example in new
        }
        for key in sorted(wanted):
            texts = [example.texts[place] for example, place in wanted[key]]
            with self._under(key):
                for members, batch in self._planned(texts):
                    values = self._policy.likelihood.measure(batch, fields)
                    values["reference_logps"] = values.pop("policy_logps")
                    for name, column in values.items():
                        for member, value in zip(members, column.tolist(), strict=True):
                            example, place = wanted[key][member]
                            found[example.group_id][name][place] = value
        result = [found.get(e.group_id) or self._cache[e.group_id] for e in examples]
        if self._remembers:
            self._cache.update(found)
        return result

    def uncached(self, examples: Sequence[Example]) -> list[ReferenceValues]:
        """The log-probabilities, neither taken from what is remembered nor remembered."""
        cache, self._cache = self._cache, {}
        try:
            return self.values(examples)
        finally:
            self._cache = cache

    def hidden(self, examples: Sequence[Example], batch: TokenBatch) -> Tensor:
        """``[M, H]``: the reference's hidden states of the answers' tokens, each text's under its own version."""
        keys = [key for example in examples for key in self.keys(example)]
        distinct = sorted(set(keys))
        of_text = torch.tensor([distinct.index(key) for key in keys])
        of_token = of_text.to(batch.rows.device)[batch.rows]
        hidden: Tensor | None = None
        for number, key in enumerate(distinct):
            with self._under(key):
                states = self._policy.likelihood.hidden(batch)
            hidden = states if hidden is None else torch.where((of_token == number)[:, None], states, hidden)
        assert hidden is not None
        return hidden

    def _under(self, key: ReferenceKey) -> AbstractContextManager[None]:
        if key == MOVING:
            assert self.slow_slot is not None
            return self._policy.evaluating(self.slow_slot)
        return self._policy.reference(self._versions.get(*key))
