"""One adapter that is trained: its weights, its optimizer, its objective and its share of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from learner.config import TrainerConfig
from learner.objectives.registry import build_objective
from learner.policy import Policy
from learner.reducer import GradientReducer
from learner.trainer_state import build_optimizer, optimizer_from_bytes, optimizer_to_bytes


class TrainingError(RuntimeError):
    """Training cannot go on: the numbers are no longer finite."""


class TrainedAdapter:
    """What is the adapter's own when two are trained on one base.

    Attributes:
        slot: which of the policy's adapters it is.
        rate_ratio: its learning rate over the job's.
        objective: its own, since running statistics are of one adapter's margins.
    """

    def __init__(self, config: TrainerConfig, policy: Policy, slot: str, rate_ratio: float = 1.0) -> None:
        self.slot, self.rate_ratio = slot, rate_ratio
        self._config, self._policy = config, policy
        self.objective = build_objective(config.objective)
        self.begin_afresh()

    def begin_afresh(self) -> None:
        """An optimizer that has made no step yet. Running statistics stay."""
        self.optimizer = build_optimizer(self._config.optimizer, self._policy.weights[self.slot])

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, rate: float, reducer: GradientReducer, active: int, share: float, learner_step: int) -> float:
        """Reduce, clip and step at the job's learning rate times ``rate_ratio``; returns the gradient's norm before clipping.

        ``active``: ranks that had examples; ``share``: of the batch's records that this rank had.

        Raises:
            TrainingError: the gradient is not finite.
            RankLost: another rank is gone or silent.
        """
        weights = list(self._policy.weights[self.slot].values())
        reducer.reduce(weights, active, share)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, self._config.optimizer.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite at learner step {learner_step}; lower optimizer.learning_rate, "
                "or use policy.dtype: float32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.rate_ratio
        self.optimizer.step()
        self.zero_grad()
        return norm

    def optimizer_bytes(self) -> bytes:
        """The optimizer's moments and step counts."""
        return optimizer_to_bytes(self.optimizer, self._policy.weights[self.slot])

    def state_dict(self) -> dict[str, Any]:
        """Everything else that is its own, as numbers that JSON can hold."""
        return {"slot": self.slot, "rate_ratio": self.rate_ratio, "objective": self.objective.state_dict()}

    def load(self, state: Mapping[str, Any], optimizer: bytes) -> None:
        """Go back to a saved state.

        Raises:
            InputError: it belongs to other weights or to another objective.
        """
        self.rate_ratio = state["rate_ratio"]
        self.objective.load_state_dict(state["objective"])
        self.begin_afresh()
        optimizer_from_bytes(optimizer, self.optimizer, self._policy.weights[self.slot])
