"""When the fast and the slow adapter change places (OFS-DPO, arXiv 2406.05534, Algorithm 1). Pure, and free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learner.config import AdapterConfig


class RoleSwap:
    """Compares the two adapters over so many steps, and says when the slow one has done better.

    By `loss`: the lower mean of the wrapped objective's loss, without the chasing term. By `win-rate`: whose answers the
    scorer preferred, where both wrote some. A draw changes nothing, and an interval without any measurement neither.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self._by = config.swap_by
        self._interval = config.swap_interval
        self._enabled = config.slow == "chase" and config.swap != "never"
        self.begin_afresh()

    def begin_afresh(self) -> None:
        """Begin an interval, and forget what was measured of this one."""
        self._steps, self._measured, self._lead = 0, 0, 0.0

    def observe(self, losses: tuple[float, float], fast_win_rate: float | None) -> bool:
        """Take one optimizer step into account, and say whether the roles change now.

        Args:
            losses: of the fast and of the slow adapter, on the same batch.
            fast_win_rate: how often the fast one's answers of the batch beat the slow one's; None where not both wrote.
        """
        if not self._enabled:
            return False
        self._steps += 1
        lead = losses[1] - losses[0] if self._by == "loss" else None if fast_win_rate is None else fast_win_rate - 0.5
        if lead is not None:
            self._measured += 1
            self._lead += lead
        if self._steps < self._interval:
            return False
        behind = self._measured > 0 and self._lead < 0
        self.begin_afresh()
        return behind

    def state_dict(self) -> dict[str, Any]:
        """The interval so far, as numbers that JSON can hold."""
        return {"steps": self._steps, "measured": self._measured, "lead": self._lead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the interval back."""
        self._steps, self._measured, self._lead = state["steps"], state["measured"], state["lead"]
