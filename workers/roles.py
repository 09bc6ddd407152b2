"""Which machines of a cluster carry which parts of a job (rule 13). Free of ray, so that validation can use it.

A machine says what it carries through Ray's custom resources, one for each role and any number of roles for a machine:

    ray start --address=HEAD:6379 --resources='{"sparring_sampler": 1, "sparring_scorer": 1}'

`data` carries the controllers, the replay queues and the version stores, next to the jobs' files; just one machine has it. A local Ray carries
all roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Role = Literal["data", "sampler", "scorer", "learner"]

ROLES: tuple[Role, ...] = get_args(Role)

SHARE = 0.001
"""What each worker takes of its machine's role: next to nothing, since processors and graphics cards bound how many there are."""


def resource(role: Role) -> str:
    """Name of the role's resource."""
    return f"sparring_{role}"


def offered(roles: Iterable[Role] = ROLES) -> dict[str, float]:
    """The resources of a machine that carries these roles."""
    return {resource(role): 1.0 for role in roles}


def carried(resources: Mapping[str, float]) -> frozenset[Role]:
    """The roles of a machine with these resources."""
    return frozenset(role for role in ROLES if resources.get(resource(role), 0.0) >= SHARE)
