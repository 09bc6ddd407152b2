"""Whether a job's workers fit into the cluster, decided before anything starts: nothing waits for ever for resources.

Pure, and free of ray, so that validation can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner.errors import InputError
from workers.roles import ROLES, Role, resource

TOLERANCE = 1e-6
"""Ray counts shares in steps of 1e-4; sums of decimal fractions are not exact."""


@dataclass(frozen=True)
class Demand:
    """What ``count`` equal workers ask for. ``setting`` is where a person changes it, such as ``resources.sampler``.

    ``role``: what a machine must carry to have them; None: any machine may.
    """

    setting: str
    cpus: float
    gpus: float = 0.0
    count: int = 1
    role: Role | None = None


@dataclass(frozen=True)
class Node:
    """The CPU and GPU shares of one machine, and the roles that it carries."""

    cpus: float
    gpus: float = 0.0
    roles: frozenset[Role] = frozenset(ROLES)


def check_capacity(demands: Sequence[Demand], cluster: Sequence[Node]) -> None:
    """See that all workers can run at the same time.

    Workers are placed greatly simplified but soundly: largest first, each on the machine where least is left over.

    Raises:
        InputError: a role has no machine, a worker is larger than every machine of its role, or together they ask for more than there is. The
            sentence names each setting.
    """
    if not cluster:
        raise InputError(
            "the cluster has no machines; start one with `ray start --head`, or leave the address out to run locally"
        )
    for role in sorted({demand.role for demand in demands if demand.role is not None}):
        if not any(role in node.roles for node in cluster):
            raise InputError(
                f"no machine of the cluster carries the role {role}; start one with "
                f"`ray start --address=HEAD:6379 --resources='{{\"{resource(role)}\": 1}}'`"
            )
    for kind in ("cpus", "gpus"):
        asked = sum(getattr(demand, kind) * demand.count for demand in demands)
        there = sum(getattr(node, kind) for node in cluster)
        if asked > there + TOLERANCE:
            raise InputError(
                f"the workers ask for {asked:g} {kind} together but the cluster has {there:g}: {_listing(demands, kind)}; "
                f"lower one of them, or give the cluster more {kind}"
            )
    _place(demands, cluster)


def _place(demands: Sequence[Demand], cluster: Sequence[Node]) -> None:
    """First the largest, each onto the machine of its role that it fills best."""
    left = [(node, [node.cpus, node.gpus]) for node in cluster]
    for demand in sorted(demands, key=lambda demand: (-demand.gpus, -demand.cpus, demand.setting)):
        of_role = [(node, free) for node, free in left if demand.role is None or demand.role in node.roles]
        for _ in range(demand.count):
            fitting = [
                free for _, free in of_role if free[0] + TOLERANCE >= demand.cpus and free[1] + TOLERANCE >= demand.gpus
            ]
            if not fitting:
                largest = max((node for node, _ in of_role), key=lambda node: (node.gpus, node.cpus))
                where = "no machine" if len(of_role) == len(left) else f"no machine with the role {demand.role}"
                raise InputError(
                    f"{demand.setting}: one worker asks for {demand.cpus:g} cpus and {demand.gpus:g} gpus, and {where} has that "
                    f"left beside the other workers (the largest has {largest.cpus:g} and {largest.gpus:g}); lower "
                    f"{demand.setting}.cpus or {demand.setting}.gpus, or add a machine"
                )
            best = min(fitting, key=lambda free: (free[1], free[0]))
            best[0] -= demand.cpus
            best[1] -= demand.gpus


def _listing(demands: Sequence[Demand], kind: str) -> str:
    return ", ".join(
        f"{demand.setting}.{kind} {getattr(demand, kind):g}" + (f" x {demand.count}" if demand.count > 1 else "")
        for demand in demands
        if getattr(demand, kind) > 0
    )
