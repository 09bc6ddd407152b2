"""Which class implements which kind. A new family is one file that registers itself, and its parameter model."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter, ValidationError

from learner.errors import InputError
from learner.objectives.base import Objective
from learner.objectives.parameters import ObjectiveParameters

_CLASSES: dict[str, type[Objective]] = {}


def register(kind: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: the class implements ``kind``."""

    def add(implementation: type[Objective]) -> type[Objective]:
        _CLASSES[kind] = implementation
        return implementation

    return add


@cache
def _load_families() -> None:
    package = import_module("learner.objectives")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"learner.objectives.{module.name}")


def objective_kinds() -> tuple[str, ...]:
    """The kinds that can be built, sorted."""
    _load_families()
    return tuple(sorted(_CLASSES))


def build_objective(parameters: ObjectiveParameters | Mapping[str, Any]) -> Objective:
    """The objective that a mapping or a parameter model describes.

    Raises:
        InputError: unknown kind, unknown key, or a value out of range.
    """
    from learner.objectives.kinds import AnyObjective  # which loads packages that import this module

    _load_families()
    if not isinstance(parameters, ObjectiveParameters):
        try:
            adapter: TypeAdapter[ObjectiveParameters] = TypeAdapter(AnyObjective)
            parameters = adapter.validate_python(dict(parameters))
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in ("objective", *first["loc"]))
            raise InputError(f"{path}: {first['msg']}; kinds are {', '.join(objective_kinds())}") from error
    if parameters.kind not in _CLASSES:
        raise InputError(f"objective.kind: {parameters.kind} is not one of {', '.join(objective_kinds())}")
    return _CLASSES[parameters.kind](parameters)
