"""Whether a job's workers fit into the cluster, decided before anything starts: nothing waits for ever for resources.

Pure, and free of ray, so that validation can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner.errors import InputError
from workers.roles import ROLES, SHARE, Role, resource

RAY_DIGITS = 4
"""Ray counts shares in steps of 1e-4."""

TOLERANCE = 1e-6
"""Sums of decimal fractions are not exact."""


@dataclass(frozen=True)
class Demand:
    """What one machine must have, ``count`` times: for one worker, or for several that share it.

    Attributes:
        setting: where a person changes it, such as ``resources.sampler``.
        cpus: CPU shares of them together.
        gpus: GPU shares of them together.
        count: how many are asked for.
        roles: what the machine must carry.
    """

    setting: str
    cpus: float
    gpus: float = 0.0
    count: int = 1
    roles: tuple[Role, ...] = ()

    def resources(self) -> dict[str, float]:
        """One of them in Ray's terms."""
        return {"CPU": share(self.cpus), "GPU": share(self.gpus), **{resource(role): SHARE for role in self.roles}}

    def fits(self, node: Node) -> bool:
        """Whether a machine carries all of its roles."""
        return node.roles.issuperset(self.roles)


@dataclass(frozen=True)
class Node:
    """The CPU and GPU shares of one machine, and the roles that it carries."""

    cpus: float
    gpus: float = 0.0
    roles: frozenset[Role] = frozenset(ROLES)


def share(amount: float) -> float:
    """A share of a processor or a GPU as Ray counts it."""
    return round(amount, RAY_DIGITS)


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
    for demand in demands:
        if not any(demand.fits(node) for node in cluster):
            offer = ", ".join(f'"{resource(role)}": 1' for role in demand.roles)
            raise InputError(
                f"no machine of the cluster carries the role{'s' if len(demand.roles) > 1 else ''} {' and '.join(demand.roles)}; start one with "
                f"`ray start --address=HEAD:6379 --resources='{{{offer}}}'`"
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
        of_role = [(node, free) for node, free in left if demand.fits(node)]
        for _ in range(demand.count):
            fitting = [
                free for _, free in of_role if free[0] + TOLERANCE >= demand.cpus and free[1] + TOLERANCE >= demand.gpus
            ]
            if not fitting:
                largest = max((node for node, _ in of_role), key=lambda node: (node.gpus, node.cpus))
                where = (
                    "no machine"
                    if len(of_role) == len(left)
                    else f"no machine with the role {' and '.join(demand.roles)}"
                )
                raise InputError(
                    f"{demand.setting}: {demand.cpus:g} cpus and {demand.gpus:g} gpus are asked for on one machine, and {where} has that "
                    f"left beside the other workers (the largest has {largest.cpus:g} and {largest.gpus:g}); lower cpus or gpus there, "
                    "or add a machine"
                )
            best = min(fitting, key=lambda free: (free[1], free[0]))
            best[0] -= demand.cpus
            best[1] -= demand.gpus


def _listing(demands: Sequence[Demand], kind: str) -> str:
    return ", ".join(
        f"{demand.setting} {getattr(demand, kind):g}" + (f" x {demand.count}" if demand.count > 1 else "")
        for demand in demands
        if getattr(demand, kind) > 0
    )
