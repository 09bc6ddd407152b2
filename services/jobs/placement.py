"""Which of a job's engines share a machine, and what each machine sets aside for them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from services.jobs.spec import ResourcesConfig
from workers.capacity import Demand, share


@dataclass(frozen=True)
class Bundle:
    """Workers that are on one machine, by their names, and what it sets aside for them."""

    workers: tuple[str, ...]
    demand: Demand


def plan(
    resources: ResourcesConfig, *, samplers: Sequence[str], scorers: Sequence[str], learners: Sequence[str]
) -> tuple[Bundle, ...]:
    """The bundles of a job, in an order that depends on its specification alone.

    Args:
        resources: the job's, which say whether sampler n and learner rank n share a machine (``placement.mode: colocated``).
        samplers: their names.
        scorers: their names.
        learners: names of the learner's ranks.
    """
    sampler, scorer, learner = resources.sampler, resources.scorer, resources.learner
    alone = [
        *((name, Demand("resources.sampler", sampler.cpus, sampler.gpus, roles=("sampler",))) for name in samplers),
        *((name, Demand("resources.learner", learner.cpus, learner.gpus, roles=("learner",))) for name in learners),
        *((name, Demand("resources.scorer", scorer.cpus, scorer.gpus, roles=("scorer",))) for name in scorers),
    ]
    if resources.placement.mode == "dedicated":
        return tuple(Bundle((name,), demand) for name, demand in alone)
    together = Demand(
        "resources.sampler and resources.learner together",
        share(sampler.cpus) + share(learner.cpus),
        share(sampler.gpus) + share(learner.gpus),
        roles=("sampler", "learner"),
    )
    shared = tuple(Bundle(pair, together) for pair in zip(samplers, learners, strict=False))
    placed = {name for bundle in shared for name in bundle.workers}
    return shared + tuple(Bundle((name,), demand) for name, demand in alone if name not in placed)


def demands(bundles: Iterable[Bundle]) -> list[Demand]:
    """What the bundles ask for, equal ones counted."""
    counted = Counter(bundle.demand for bundle in bundles)
    return [replace(demand, count=count) for demand, count in counted.items()]
