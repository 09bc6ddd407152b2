"""The kinds that a job file may choose: the built-in ones, and those that installed packages add.

A package adds a kind through an entry point of the group ``sparring.objectives`` that names its parameter model; see
docs/adding-an-objective.md.
"""

from __future__ import annotations

from functools import reduce
from importlib.metadata import entry_points
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from learner.objectives.parameters import BUILT_IN, ObjectiveParameters

ENTRY_POINTS = "sparring.objectives"


def installed_parameters() -> tuple[type[ObjectiveParameters], ...]:
    """Parameter models that installed packages add, in the order of their names."""
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return tuple(point.load() for point in found)


if TYPE_CHECKING:
    AnyObjective = ObjectiveParameters
else:
    AnyObjective = Annotated[reduce(or_, (*BUILT_IN, *installed_parameters())), Field(discriminator="kind")]
    """The discriminated union of all kinds."""
