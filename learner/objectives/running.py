"""Running mean and deviation of a number that each batch has many of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor


class RunningMoments:
    """Exponential moving averages of a batch's mean and unbiased standard deviation, both from 0.

    Without bias correction the first batch enters with weight 1 - momentum, as the published codes of beta-DPO and
    AlphaDPO have it; with it the averages are divided by ``1 - momentum ** steps``.
    """

    LEAST_DEVIATION: ClassVar[float] = 1e-6
    """Deviations below this are none: there is nothing to divide by."""

    def __init__(self, momentum: float, bias_correction: bool = False) -> None:
        self.momentum, self.bias_correction = momentum, bias_correction
        self._mean = self._deviation = 0.0
        self.steps = 0

    @property
    def mean(self) -> float:
        """The running mean."""
        return self._mean / self._correction

    @property
    def deviation(self) -> float:
        """The running standard deviation."""
        return self._deviation / self._correction

    @property
    def _correction(self) -> float:
        return 1 - self.momentum**self.steps if self.bias_correction and self.steps else 1.0

    def update(self, values: Tensor) -> None:
        """Let a batch in. A batch of one value has no deviation; an empty one changes nothing."""
        if not len(values):
            return
        values = values.detach().double()
        deviation = float(values.std()) if len(values) > 1 else 0.0
        self._mean = self.momentum * self._mean + (1 - self.momentum) * float(values.mean())
        self._deviation = self.momentum * self._deviation + (1 - self.momentum) * deviation
        self.steps += 1

    def state_dict(self) -> dict[str, float]:
        """Everything that an exact continuation needs."""
        return {"mean": self._mean, "deviation": self._deviation, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._mean, self._deviation = float(state["mean"]), float(state["deviation"])
        self.steps = int(state["steps"])
