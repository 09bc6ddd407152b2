"""What the pairwise objectives share: R = 2, the chosen answer first; and most are a link of one margin."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from learner.errors import InputError
from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch


class PairObjective(Objective):
    """An objective on pairs whose losses follow from each pair alone, so that wrappers can go round it."""

    beta: float
    """Strength of the pull towards the reference. A wrapper may move it."""

    @abstractmethod
    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: each pair's loss."""

    def metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """What is logged of each pair, ``[B]`` each."""
        return self.preference_metrics(batch)

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Each pair's loss."""
        return Evaluation(self.losses(batch), self.metrics(batch))

    def margin_losses(self, margins: Tensor) -> Tensor | None:
        """``[N]``: the losses of pairs with these margins, or None where a loss is more than a function of its margin."""
        return None


class MarginObjective(PairObjective):
    """``loss = link(margin)``: one number a pair says it all."""

    @abstractmethod
    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` with gradient: the chosen answer's lead over the rejected one, in nats before beta."""

    @abstractmethod
    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: the loss of a margin."""

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` detached: :meth:`margin`."""
        return self.margin(batch).detach()

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: the link of each margin."""
        return self.link(self.margin(batch))

    def margin_losses(self, margins: Tensor) -> Tensor | None:
        """``[N]``: the link of each margin."""
        return self.link(margins)


def pair(values: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen and the rejected column of ``[B, 2]``.

    Raises:
        InputError: the batch is not one of pairs.
    """
    if values.shape[1] != 2:
        raise InputError(
            f"this objective takes pairs, not {values.shape[1]} answers; give it the chosen and the rejected one"
        )
    return values[:, 0], values[:, 1]


def lead(values: Tensor) -> Tensor:
    """``[B]``: the chosen answer's value minus the rejected one's."""
    chosen, rejected = pair(values)
    return chosen - rejected


def per_token(values: Tensor, batch: PreferenceBatch) -> Tensor:
    """``[B, R]``: sums over tokens as means. An answer without tokens counts as one of one token."""
    return values / batch.read("lengths", fill=1.0).clamp(min=1)


def chosen_nll(batch: PreferenceBatch) -> Tensor:
    """``[B]``: the chosen answer's mean negative log-likelihood a token, in nats."""
    return -per_token(batch.read("policy_logps"), batch)[:, 0]
