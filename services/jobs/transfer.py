"""How learning domain after domain went, from what a job's evaluations measured: the matrices of held-out win rates, and their averages. Pure.

Row 0 of a matrix is version 0's, row i that of the version at the end of domain i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from learner.config import ScheduleConfig
from learner.transfer import TransferMatrix
from services.jobs.domains import Domain, DomainPlan
from services.jobs.records import JobRecord, VersionRecord

Judge = Literal["scorer", "gold"]

PREFIX: dict[Judge, str] = {"scorer": "", "gold": "gold_"}
"""What metric names of a judge's win rates begin with."""

IN_WORDS: dict[Judge, str] = {"scorer": "by the scorer", "gold": "by the gold judge"}

Measured = Mapping[int, Mapping[str, float | None]]
"""What evaluations measured: metrics by name, by version."""


@dataclass(frozen=True)
class JobTransfer:
    """A job's domains, and the win rates on them by each judge; ``gold`` is None where there is no gold judge's win rate."""

    domains: tuple[Domain, ...]
    scorer: TransferMatrix
    gold: TransferMatrix | None

    @property
    def matrices(self) -> dict[Judge, TransferMatrix]:
        """The matrix of every judge there is."""
        found: dict[Judge, TransferMatrix | None] = {"scorer": self.scorer, "gold": self.gold}
        return {judge: matrix for judge, matrix in found.items() if matrix is not None}

    @property
    def row_names(self) -> tuple[str, ...]:
        """What each row of a matrix is about, in words, whether it has been measured yet or not."""
        return ("v0, start", *(f"v{domain.end}, after {domain.name}" for domain in self.domains))


def job_transfer(job: JobRecord, versions: Sequence[VersionRecord]) -> JobTransfer | None:
    """What a job's versions say about its domains; None where it lists none."""
    schedule = job.spec.get("schedule")
    if not isinstance(schedule, dict) or schedule.get("domains") is None:
        return None
    plan = DomainPlan(ScheduleConfig.model_validate(schedule))
    measured = {record.version: record.metrics for record in versions if record.module == "fast"}
    gold = transfer_matrix(plan, measured, "gold")
    anything = any(rate is not None for row in gold.rows for rate in row)
    return JobTransfer(plan.domains, transfer_matrix(plan, measured, "scorer"), gold if anything else None)


def transfer_matrix(plan: DomainPlan, measured: Measured, judge: Judge) -> TransferMatrix:
    """The matrix of one judge's win rates, as far as the domains have been learned and their ends evaluated.

    Raises:
        InputError: the plan has no domains.
    """
    names = plan.schedule.domains or ()
    ends = [0, *(domain.end for domain in plan.domains)]
    rows = [
        tuple(measured.get(version, {}).get(f"{PREFIX[judge]}win_rate/{name}") for name in names) for version in ends
    ]
    while len(rows) > 1 and all(rate is None for rate in rows[-1]):
        rows.pop()
    return TransferMatrix(names, tuple(rows))


def averages(matrix: TransferMatrix) -> dict[str, float | None]:
    """The averages of a matrix under stable metric names, without a judge's prefix; None where one is not defined."""
    return {
        "average_win_rate": matrix.average(),
        "forgetting": matrix.forgetting(),
        "backward_transfer": matrix.backward_transfer(),
        "forward_transfer": matrix.forward_transfer(),
    }


def averages_in_words(matrix: TransferMatrix) -> str:
    """The averages that are defined, as one line; all but the average win rate are differences, in percentage points."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.1%}"
        if name == "average_win_rate"
        else f"{name.replace('_', ' ')} {value:+.1%}"
        for name, value in averages(matrix).items()
        if value is not None
    )


def transfer_metrics(plan: DomainPlan, version: int, measured: Measured) -> dict[str, float]:
    """The averages that are defined, of both judges, when the evaluation of ``version`` ends a domain; else nothing."""
    if plan.ends_at(version) is None:
        return {}
    until = {number: metrics for number, metrics in measured.items() if number <= version}
    return {
        f"{prefix}{name}": value
        for judge, prefix in PREFIX.items()
        for name, value in averages(transfer_matrix(plan, until, judge)).items()
        if value is not None
    }
