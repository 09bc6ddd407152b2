"""Objectives: what is minimised. One file per family; `parameters` says what a job file may choose, without torch.

objective = build_objective({"kind": "dpo", "beta": 0.1})
out = objective(batch)                  # a whole batch: out.loss, out.per_example, out.metrics

stats = objective.prepare(margins)      # or in parts: values of the whole optimizer batch, all ranks ...
part = objective(micro_batch, stats)    # ... and losses that are sums, to be divided by stats.count
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.objectives.base import BatchStatistics, Objective, ObjectiveOutput
    from learner.objectives.batch import PreferenceBatch
    from learner.objectives.registry import build_objective, objective_kinds

__all__ = [
    "BatchStatistics",
    "Objective",
    "ObjectiveOutput",
    "PreferenceBatch",
    "build_objective",
    "objective_kinds",
]

_HOMES = {
    "BatchStatistics": "learner.objectives.base",
    "Objective": "learner.objectives.base",
    "ObjectiveOutput": "learner.objectives.base",
    "PreferenceBatch": "learner.objectives.batch",
    "build_objective": "learner.objectives.registry",
    "objective_kinds": "learner.objectives.registry",
}


def __getattr__(name: str) -> Any:
    """Import the loss code, and torch with it, only when it is asked for."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
