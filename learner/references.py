"""Which policy the log-ratios are taken against, and which choices make no sense. Pure, and free of torch."""

from __future__ import annotations

from typing import Literal

from learner.config import ScheduleConfig
from learner.errors import InputError
from learner.objectives.kinds import AnyObjective
from learner.objectives.parameters import SppoParameters

ResolvedReference = Literal["start", "round", "behaviour", "slow"]


def resolve_reference(objective: AnyObjective, schedule: ScheduleConfig) -> ResolvedReference:
    """The reference that a job uses.

    SPPO regresses the log-ratio to the very policy that the win probabilities are measured against (arXiv 2405.00675,
    eq. 4.6): the one that wrote the answers. That is the round's policy only where no answer is stale.

    Raises:
        InputError: SPPO with `start`, or with `round` although answers may be stale.
    """
    chosen = objective.reference
    if not isinstance(objective, SppoParameters):
        return "start" if chosen == "auto" else chosen
    if chosen in ("start", "slow"):
        raise InputError(
            f"objective.reference: {chosen} does not go with sppo, whose win probabilities are measured against the "
            "policy that wrote the answers; use auto, round or behaviour"
        )
    if chosen == "round" and schedule.max_staleness > 0:
        raise InputError(
            "objective.reference: round goes with sppo only where schedule.max_staleness is 0, not "
            f"{schedule.max_staleness}; use auto or behaviour"
        )
    if chosen == "auto":
        return "round" if schedule.max_staleness == 0 else "behaviour"
    return chosen
