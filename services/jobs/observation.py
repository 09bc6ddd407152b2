"""What a heartbeat saw of every stage and worker, as metrics with labels. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.jobs.crew import Crew
from workers.fleet import Fleet
from workers.messages import SamplerStatus
from workers.replay.rows import LedgerCounts
from workers.series import labelled

ENGINES = ("sampler", "scorer", "learner", "learner-rank")
"""Roles whose time is counted: the others only keep data."""


def job_metrics(
    crew: Crew,
    fleet: Fleet,
    counts: LedgerCounts,
    statuses: Iterable[SamplerStatus],
    activities: Mapping[str, Mapping[str, float]],
    restarts: Mapping[str, int],
) -> dict[str, float]:
    """The counters of a job under stable names: groups by what became of them, and each worker's own.

    Args:
        crew: the job's workers.
        fleet: the samplers' states and restarts.
        counts: the ledger's account.
        statuses: what the samplers said.
        activities: seconds busy and waiting, by worker.
        restarts: of workers that are no samplers, by name.
    """
    metrics = counts.as_metrics()
    said = {status.sampler: status.metrics for status in statuses}
    of_samplers = fleet.sampler_metrics()
    for member in crew.members:
        worker = member.name.removeprefix(f"{crew.job_id}-")
        restarted = fleet.samplers[member.name].restarts if member.role == "sampler" else restarts.get(member.name, 0)
        own = {**of_samplers.get(member.name, {}), **said.get(member.name, {})}
        metrics |= {labelled(name, worker=worker): value for name, value in own.items()}
        metrics[labelled("worker_restarts_total", stage=member.role, worker=worker)] = float(restarted)
        if member.role in ENGINES:
            activity = activities.get(member.name, {})
            metrics |= {labelled(name, stage=member.role, worker=worker): value for name, value in activity.items()}
    return metrics
