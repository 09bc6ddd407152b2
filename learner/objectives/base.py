"""What all objectives share: the call, the two phases for batches in parts, and the state of running statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
        per_example: ``[B]``, 0 where an example has too few answers.
        metrics: 0-d, detached; means or sums as the loss is.
    """

    loss: Tensor
    per_example: Tensor
    metrics: dict[str, Tensor]


class Objective(ABC):
    """A loss on sequence log-probabilities.

    Called with a whole batch it returns the mean over the examples that are usable. Called with statistics from
    :meth:`prepare` it returns sums, which the caller divides by ``statistics.count``: then no split into micro-batches
    or ranks changes the gradient (rule 12).
    """

    requires: frozenset[str] = frozenset()
    """Fields of the batch that are read beside ``policy_logps`` and ``mask``. The learner computes only these."""

    needs_margins: ClassVar[bool] = False
    """Whether :meth:`prepare` looks at the values of the margins, or only at how many there are."""

    minimum_answers: ClassVar[int] = 2
    """Answers that an example must have to count."""

    def __init__(self, parameters: ObjectiveParameters) -> None:
        self.parameters = parameters
        self.training = True

    def __call__(self, batch: PreferenceBatch, stats: BatchStatistics | None = None) -> ObjectiveOutput:
        """The loss of a batch, or of a part of one when ``stats`` of the whole are given.

        Raises:
            InputError: a field that the objective requires is missing.
        """
        for name in sorted(self.requires):
            batch.read(name)
        usable = self.usable(batch)
        divisor = 1.0
        if stats is None:
            stats = self.prepare(self.margins(batch)[usable])
            divisor = float(max(1, stats.count))
        losses, values = self._evaluate(batch, stats)
        per_example = torch.where(usable, losses, torch.zeros_like(losses))
        metrics = {
            name: torch.where(usable, value.detach(), torch.zeros_like(value)).sum() / divisor
            for name, value in values.items()
        }
        return ObjectiveOutput(per_example.sum() / divisor, per_example, metrics)

    def prepare(self, margins: Tensor) -> BatchStatistics:
        """Phase one: look at the whole optimizer batch.

        Args:
            margins: ``[N]``, one for each usable example of the batch over all ranks (see :meth:`margins`).
        """
        return BatchStatistics(count=int(margins.numel()))

    def usable(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` bool: examples with enough answers to count."""
        return batch.present.sum(dim=1) >= self.minimum_answers

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` detached: log-ratio of the first answer present minus that of the last, in nats."""
        return _first_minus_last(self.log_ratios(batch), batch.present).detach()

    def log_ratios(self, batch: PreferenceBatch) -> Tensor:
        """``[B, R]``: policy minus reference log-probability in nats (the policy's own where no reference is used)."""
        policy = batch.read("policy_logps")
        return policy - batch.read("reference_logps") if "reference_logps" in self.requires else policy

    def preference_metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Per example: `margin` in nats, `accuracy` (is the margin positive), `mean_log_ratio` in nats (not a KL)."""
        ratios, present = self.log_ratios(batch).detach(), batch.present
        margin = _first_minus_last(ratios, present)
        mean = (ratios * present).sum(1) / present.sum(1).clamp(min=1)
        return {"margin": margin, "accuracy": (margin > 0).to(margin.dtype), "mean_log_ratio": mean}

    @abstractmethod
    def _evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses ``[B]`` and detached metrics ``[B]``, finite also where an example is not usable."""

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


def _first_minus_last(values: Tensor, present: Tensor) -> Tensor:
    """``[B]``: value of the first answer present minus that of the last one present."""
    positions = torch.arange(values.shape[1], device=values.device)
    last = torch.where(present, positions, torch.zeros_like(positions)).amax(dim=1)
    first = torch.where(present, positions, positions[-1]).amin(dim=1)
    rows = torch.arange(len(values), device=values.device)
    return values[rows, first] - values[rows, last]


class PairObjective(Objective):
    """An objective on pairs: R = 2, the chosen answer first."""

    def pair(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen and the rejected column of ``[B, 2]``.

        Raises:
            InputError: the batch is not one of pairs.
        """
        if values.shape[1] != 2:
            raise InputError(
                f"this objective takes pairs, not {values.shape[1]} answers; give it the chosen and the rejected one"
            )
        return values[:, 0], values[:, 1]
