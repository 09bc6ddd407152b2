"""What an objective and its pairing rule cannot do in a job (rule 15). Pure; one sentence for each problem."""

from __future__ import annotations

from collections.abc import Iterator

from learner.errors import InputError
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
    if spec.pairing.rule == "did" and spec.offline:
        yield (
            "pairing.rule: did draws by how likely the policy was to write an answer, which a file does not say; use auto with "
            "schedule.mode: offline"
        )
    if spec.feedback.share > 0:
        yield from _feedback(spec)
    if spec.pairing.rule == "did" and not objective.uses_reference:
        yield (
            f"pairing.rule: did draws by log-ratios to a reference, and objective.kind: {objective.kind} has none; use auto"
        )


def _feedback(spec: JobSpec) -> Iterator[str]:
    """Who cannot learn from people's preferences, whose answers come with neither a version nor a sampler's log-probabilities."""
    asked = f"feedback.share: {spec.feedback.share:g}"
    objective = spec.objective
    if spec.offline:
        yield f"{asked} does not go with schedule.mode: offline, whose groups are a file's pairs; add them to the file, or use mode: rounds or online"
        return
    if spec.feedback_groups == 0:
        yield (
            f"{asked} of schedule.prompts_per_round: {spec.schedule.prompts_per_round} is less than one group; raise it to "
            f"{1 / spec.schedule.prompts_per_round:.2g} or more, or leave it out"
        )
    if _reference(spec) == "behaviour":
        how = (
            "use schedule.mode: rounds, or another objective"
            if objective.kind == "sppo"
            else "use objective.reference: start or round"
        )
        yield (
            f"{asked} does not go with objective.reference: behaviour, which compares an answer with the version that wrote it, and "
            f"people's answers carry none; {how}"
        )
    if spec.pairing.rule == "did":
        yield (
            f"{asked} does not go with pairing.rule: did, which draws by how likely the policy was to write an answer, and people's answers "
            "do not say; use auto"
        )
    if objective.kind == "xpo":
        yield (
            f"{asked} does not go with objective.kind: xpo, which needs answers that version 0 wrote, and people's do not say who wrote them; "
            "use another objective"
        )


def _reference(spec: JobSpec) -> str | None:
    try:
        return resolve_reference(spec.objective, spec.schedule)
    except InputError:  # told above
        return None
