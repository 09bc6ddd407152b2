"""What all objectives share: the call, the two phases for batches in parts, and the state of running statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.errors import InputError
from learner.objectives.batch import PreferenceBatch
from learner.objectives.parameters import ObjectiveParameters


@dataclass(frozen=True)
class BatchStatistics:
    """Detached values of a whole optimizer batch over all ranks. ``count``: its examples, by which sums are divided."""

    count: int


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns.

    Attributes:
        loss: 0-d. Mean over the batch's examples; with statistics, the part's sum.
        per_example: ``[B]``, 0 where an example has too few answers or was left out.
        metrics: 0-d, detached; means or sums as the loss is.
    """

    loss: Tensor
    per_example: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What an objective makes of a batch; every tensor is ``[B]`` and finite also where an example is not usable.

    Attributes:
        losses: what is added up.
        metrics: detached.
        kept: examples that count, where the objective leaves some out.
        terms: what is added up, where that is not the example's own loss: a loss that is no sum over examples gives
            terms whose sum over the whole batch is the count times the loss, with its gradient.
    """

    losses: Tensor
    metrics: dict[str, Tensor]
    kept: Tensor | None = None
    terms: Tensor | None = None


class Objective(ABC):
    """A loss on sequence log-probabilities.

    Called with a whole batch it returns the mean over the examples that are usable. Called with statistics from
    :meth:`prepare` it returns sums, which the caller divides by ``statistics.count``: then no split into micro-batches
    or ranks changes the gradient (rule 12).
    """

    requires: frozenset[str] = frozenset()
    """Fields of the batch that are read beside ``policy_logps`` and ``mask``. The learner computes only these."""

    needs_margins: bool = False
    """Whether :meth:`prepare` looks at the values of the margins, or only at how many there are."""

    minimum_answers: int = 2
    """Answers that an example must have to count."""

    def __init__(self, parameters: ObjectiveParameters) -> None:
        self.parameters = parameters
        self.training = True
        if parameters.compares_with_reference:
            self.requires = frozenset({"reference_logps"})

    def __call__(self, batch: PreferenceBatch, stats: BatchStatistics | None = None) -> ObjectiveOutput:
        """The loss of a batch, or of a part of one when ``stats`` of the whole are given.

        Raises:
            InputError: a field that the objective requires is missing.
        """
        self.check(batch)
        usable = self.usable(batch)
        divisor = 1.0
        if stats is None:
            stats = self.prepare(self.margins(batch)[usable])
            divisor = float(max(1, stats.count))
            batch = batch.numbered(usable)
        found = self.evaluate(batch, stats)
        if found.kept is not None:
            usable = usable & found.kept
        per_example = torch.where(usable, found.losses, torch.zeros_like(found.losses))
        terms = per_example if found.terms is None else torch.where(usable, found.terms, torch.zeros_like(found.terms))
        metrics = {
            name: torch.where(usable, value.detach(), torch.zeros_like(value)).sum() / divisor
            for name, value in found.metrics.items()
        }
        return ObjectiveOutput(terms.sum() / divisor, per_example, metrics)

    def check(self, batch: PreferenceBatch) -> None:
        """See that the batch carries what is read.

        Raises:
            InputError: a field is missing.
        """
        for name in sorted(self.requires):
            batch.read(name)

    def prepare(self, margins: Tensor) -> BatchStatistics:
        """Phase one: look at the whole optimizer batch, and move the running statistics while training.

        Args:
            margins: one row for each usable example of the batch over all ranks, in order (see :meth:`margins`).
        """
        return BatchStatistics(count=len(margins))

    def usable(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` bool: examples with enough answers to count."""
        return batch.present.sum(dim=1) >= self.minimum_answers

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` or ``[B, C]`` detached, what :meth:`prepare` looks at: log-ratio of the first answer minus the last's."""
        return first_minus_last(self.log_ratios(batch), batch.present).detach()

    def log_ratios(self, batch: PreferenceBatch) -> Tensor:
        """``[B, R]``: policy minus reference log-probability in nats (the policy's own where no reference is used)."""
        policy = batch.read("policy_logps")
        return policy - batch.read("reference_logps") if "reference_logps" in self.requires else policy

    def preference_metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Per example: `margin` in nats, `accuracy` (is the margin positive), `mean_log_ratio` in nats (not a KL)."""
        ratios, present = self.log_ratios(batch).detach(), batch.present
        margin = first_minus_last(ratios, present)
        mean = (ratios * present).sum(1) / present.sum(1).clamp(min=1)
        return {"margin": margin, "accuracy": (margin > 0).to(margin.dtype), "mean_log_ratio": mean}

    @abstractmethod
    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Losses and metrics of a batch or a part of one."""

    def train(self) -> None:
        """Let running statistics move again."""
        self.training = True

    def eval(self) -> None:
        """Freeze running statistics."""
        self.training = False

    def state_dict(self) -> dict[str, Any]:
        """Running statistics, as numbers that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take running statistics back.

        Raises:
            InputError: they belong to another objective.
        """
        if set(state) != set(self.state_dict()):
            raise InputError(
                f"the saved state of the objective holds {sorted(state)}, "
                f"but this one keeps {sorted(self.state_dict())}; resume with the one that the state was saved with"
            )


def first_minus_last(values: Tensor, present: Tensor) -> Tensor:
    """``[B]``: value of the first answer present minus that of the last one present."""
    positions = torch.arange(values.shape[1], device=values.device)
    last = torch.where(present, positions, torch.zeros_like(positions)).amax(dim=1)
    first = torch.where(present, positions, positions[-1]).amin(dim=1)
    rows = torch.arange(len(values), device=values.device)
    return values[rows, first] - values[rows, last]
