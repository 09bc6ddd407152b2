"""What an objective and its pairing rule cannot do in a job (rule 15). Pure; one sentence for each problem."""

from __future__ import annotations

from collections.abc import Iterator

from learner.errors import InputError
from learner.objectives.parameters import ChaseParameters
from learner.pairing_rules import resolve_rule
from learner.references import resolve_reference
from services.jobs.spec import JobSpec


def objective_problems(spec: JobSpec) -> Iterator[str]:
    """Combinations of objective, reference, pairing and mode that cannot work."""
    objective = spec.objective
    for check in (
        lambda: resolve_reference(objective, spec.schedule),
        lambda: resolve_rule(objective, spec.pairing),
    ):
        try:
            check()
        except InputError as error:
            yield str(error)
    if isinstance(objective, ChaseParameters):
        yield (
            "objective.kind: chase needs a fast and a slow module, and a job trains one adapter; use "
            f"objective.kind: {objective.inner.kind} alone"
        )
    if spec.pairing.rule == "did" and spec.offline:
        yield (
            "pairing.rule: did draws by how likely the policy was to write an answer, which a file does not say; use auto with "
            "schedule.mode: offline"
        )
    if spec.pairing.rule == "did" and not objective.uses_reference:
        yield (
            f"pairing.rule: did draws by log-ratios to a reference, and objective.kind: {objective.kind} has none; use auto"
        )
