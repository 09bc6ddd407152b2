"""Room that is set aside on the cluster's machines, for all workers of a job or for none: Ray's placement groups (rules 9 and 17)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)

from workers.errors import CallTimeout


def reserve(name: str, bundles: Sequence[Mapping[str, float]], strategy: Literal["pack", "spread"]) -> None:
    """Ask for room on the cluster's machines, for all bundles or for none. Does not wait for it (:func:`reserved`).

    The reservation outlives the process that asked, until it is released. When a machine is lost, its bundles are moved to others. One of this
    name and with these bundles that is there already stays; one with others is released first.

    Args:
        name: unique in the namespace.
        bundles: for each, what one machine sets aside, in Ray's terms; a zero asks for nothing.
        strategy: `pack`: on as few machines as possible; `spread`: on as many.
    """
    wanted = [{kind: amount for kind, amount in bundle.items() if amount > 0} for bundle in bundles]
    there = _reservation(name)
    if there is not None:
        if there.bundle_specs == wanted:
            return
        release(name)
    placement_group(wanted, strategy=strategy.upper(), name=name, lifetime="detached")


def reserved(name: str, timeout_seconds: int) -> bool:
    """Whether every bundle of a reservation has its room, waited for so long."""
    there = _reservation(name)
    return there is not None and there.wait(timeout_seconds)


def release(name: str, timeout_seconds: float = 30.0) -> None:
    """Give a reservation back, and wait until its name is free; what still runs in it ends. Nobody has that name: does nothing.

    Raises:
        CallTimeout: the name was still taken after ``timeout_seconds``.
    """
    limit = time.monotonic() + timeout_seconds
    while (there := _reservation(name)) is not None:
        remove_placement_group(there)
        if time.monotonic() > limit:
            raise CallTimeout(
                f"the reservation {name} was not given back within {timeout_seconds:g} s; see `ray status`"
            )
        time.sleep(0.02)


def _reservation(name: str) -> PlacementGroup | None:
    try:
        return get_placement_group(name)
    except ValueError:
        return None
