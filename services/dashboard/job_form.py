"""A job as somebody writes it into the form: a text, and fields that stand for the keys which people change most. Pure but for the templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import services
from learner.errors import InputError
from learner.objectives.kinds import AnyObjective
from services.jobs.load import written_mapping

EXAMPLES = Path(services.__file__).parents[1] / "examples"
"""The job files that Sparring comes with."""

EMPTY = "name: my-job\n\npolicy:\n  model:\n\nprompts:\n  source:\n"
"""The template of somebody who wants to write it all."""

Kind = Literal["text", "whole number", "number", "choice"]


@dataclass(frozen=True)
class Field:
    """One key of a job that has a field of its own in the form. ``choices`` are its values, where they are few."""

    path: str
    label: str
    kind: Kind = "text"
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> object:
        """What the field says.

        Raises:
            InputError: it is no number.
        """
        if self.kind in ("text", "choice"):
            return text
        try:
            return int(text) if self.kind == "whole number" else float(text)
        except ValueError:
            raise InputError(f"{self.path}: {text!r} is not a {self.kind}") from None


def _objectives() -> tuple[str, ...]:
    union = get_args(AnyObjective)[0]
    return tuple(sorted(str(member.model_fields["kind"].default) for member in get_args(union)))


FIELDS = (
    Field("name", "Name"),
    Field("policy.model", "Policy: folder or name on the hub"),
    Field("prompts.source", "Prompts: file or dataset"),
    Field("scorer.model.model", "Scorer: folder or name on the hub"),
    Field("objective.kind", "Objective", "choice", _objectives()),
    Field("evaluation.prompts.source", "Held-out prompts"),
    Field("schedule.rounds", "Rounds", "whole number"),
    Field("schedule.prompts_per_round", "Prompts a round", "whole number"),
    Field("sampling.answers", "Answers to a prompt", "whole number"),
    Field("optimizer.learning_rate", "Learning rate", "number"),
    Field("feedback.share", "Share of people's preferences", "number"),
    Field("seed", "Seed", "whole number"),
)
"""In the form's order."""


def templates() -> dict[str, str]:
    """The text of each template by its name; an installation without the examples has only the empty one."""
    files = sorted(EXAMPLES.glob("*.yaml")) if EXAMPLES.is_dir() else []
    return {**{file.stem: file.read_text(encoding="utf-8") for file in files}, "empty": EMPTY}


def written(text: str, filled: Mapping[str, str]) -> dict[str, Any]:
    """The job that the form says: the text, in which fields that are filled in replace their keys.

    Args:
        text: a job file.
        filled: what stands in the fields, by their paths; empty ones leave the text as it is.

    Raises:
        InputError: the text is no job file, or a field holds no number; each complaint is a line.
    """
    job = dict(written_mapping(text))
    complaints: list[str] = []
    for field in FIELDS:
        said = filled.get(field.path, "").strip()
        if not said:
            continue
        try:
            value = field.read(said)
        except InputError as error:
            complaints.append(str(error))
            continue
        if field.path == "objective.kind":
            if at(job, field.path) != value:  # the keys of one objective are not those of another
                job["objective"] = {"kind": value}
        else:
            _put(job, field.path.split("."), value)
    if complaints:
        raise InputError("\n".join(complaints))
    return job


def at(job: Mapping[str, Any], path: str) -> Any:
    """The value under a path; None where there is none."""
    found: Any = job
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def in_the_text(text: str) -> dict[str, str]:
    """What the text says for each field, in words; nothing where it cannot be read yet."""
    try:
        job = written_mapping(text)
    except InputError:
        return {}
    return {field.path: str(value) for field in FIELDS if (value := at(job, field.path)) is not None}


def _put(job: dict[str, Any], keys: list[str], value: object) -> None:
    inside = job
    for key in keys[:-1]:
        below = inside.get(key)
        inside[key] = dict(below) if isinstance(below, Mapping) else {}
        inside = inside[key]
    inside[keys[-1]] = value
