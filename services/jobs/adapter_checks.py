"""What a fast and a slow adapter, and adapters of several domains, cannot do in a job (rule 15). Pure; one sentence for each problem."""

from __future__ import annotations

from collections.abc import Iterator

from learner.objectives.parameters import ChaseParameters, SppoParameters
from services.jobs.spec import JobSpec


def adapter_problems(spec: JobSpec) -> Iterator[str]:
    """Combinations of adapters, objective, sampling and domains that cannot work."""
    yield from _slow(spec)
    yield from _domains(spec)


def _slow(spec: JobSpec) -> Iterator[str]:
    objective, sampling, slow = spec.objective, spec.sampling, spec.adapters.slow
    if isinstance(objective, ChaseParameters) and slow != "chase":
        yield (
            f"objective.kind: chase is the loss of two adapters, and adapters.slow: {slow} trains one; set adapters.slow: chase, or use "
            f"objective.kind: {objective.inner.kind} alone"
        )
    if slow == "chase" and not isinstance(objective, ChaseParameters):
        yield (
            f"adapters.slow: chase trains two adapters by objective.kind: chase, not {objective.kind}; put a pairwise objective inside it "
            "(objective: {kind: chase, inner: {kind: dpo}}), or set adapters.slow: average"
        )
    if slow == "off":
        for field, value in (
            ("sampling.policy", sampling.policy if sampling.policy != "fast" else None),
            ("sampling.opponent", "slow" if sampling.opponent == "slow" else None),
            ("objective.reference", "slow" if objective.reference == "slow" else None),
        ):
            if value is not None:
                yield f"{field}: {value} needs a slow adapter, and adapters.slow is off; set it to chase or average"
    if objective.reference == "slow" and slow == "chase":
        yield (
            "objective.reference: slow does not go with adapters.slow: chase, whose slow adapter would be trained against itself; use start, "
            "or adapters.slow: average"
        )
    if isinstance(objective, SppoParameters) and sampling.policy != "fast" and objective.reference != "behaviour":
        yield (
            f"sampling.policy: {sampling.policy} goes with sppo only with objective.reference: behaviour, since each answer's log-ratio is to "
            "the adapter that wrote it; set it, or use another objective"
        )
    swaps_by_wins = spec.adapters.swap_by == "win-rate" and slow == "chase" and spec.adapters.swap != "never"
    if swaps_by_wins and sampling.policy != "both" and sampling.opponent != "slow":
        yield (
            f"adapters.swap_by: win-rate compares answers of both adapters, and only the {sampling.policy} one writes; set "
            "sampling.policy: both, or adapters.swap_by: loss"
        )


def _domains(spec: JobSpec) -> Iterator[str]:
    schedule = spec.schedule
    if schedule.domains is not None and schedule.early_stop_rounds is not None:
        yield (
            f"schedule.early_stop_rounds: {schedule.early_stop_rounds} does not go with schedule.domains, since a new domain may lower the "
            "win rate at first; leave it out"
        )
    if schedule.combine != "none" and spec.policy.adapter is not None:
        yield (
            f"schedule.combine: {schedule.combine} combines what the domains added to the bare model, so it does not go with policy.adapter; "
            "merge that adapter into the model first (sparring export --merged), or set combine: none"
        )
    if schedule.combine != "none" and spec.adapters.slow == "average":
        yield (
            f"schedule.combine: {schedule.combine} begins each domain with fresh adapters, which leaves an average of earlier ones without "
            "meaning; use adapters.slow: off or chase"
        )
