"""Jobs that learn domain after domain: when they evaluate, what they record at a domain's end, and what their report shows."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_world import DOMAIN_RATES, DOMAINS, job_with_domains, running_job
from rich.console import Console

from learner.config import ScheduleConfig
from services.cli.local import tell_end
from services.jobs.crew import Crew
from services.jobs.domains import DomainPlan
from services.jobs.evaluations import Evaluator
from services.jobs.journal import Journal
from services.jobs.layout import JobPaths
from services.jobs.prepare import PreparedPrompts
from services.jobs.report import write_report
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.jobs.transfer import job_transfer, transfer_matrix, transfer_metrics
from services.settings import Settings
from workers.fleet import Fleet
from workers.messages import DomainWinRate, EvaluationResult, JudgedWinRate


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(Settings(home=tmp_path).store_url)


def evaluator(store: JobStore, home: Path, **schedule: Any) -> Evaluator:
    """Of a job that evaluates every hundred versions and whose workers were not started."""
    job_id = running_job(store, home, schedule=schedule, evaluation={"every": 100})
    spec = JobSpec.model_validate(store.get(job_id).spec)
    crew = Crew(job_id, spec, JobPaths(home, job_id), prompts=())
    fleet = Fleet(spec.resources.fleet, ("sampler-0",))
    journal = Journal(store, job_id, logging.getLogger("test"))
    return Evaluator(spec, PreparedPrompts((), ()), crew, fleet, journal)


def judged(mean: float) -> JudgedWinRate:
    return JudgedWinRate(mean=mean, low=mean / 2, high=(1 + mean) / 2, tie_rate=0.0, count=64)


def result(version: int, scorer: tuple[float, ...], gold: tuple[float, ...] | None = None) -> EvaluationResult:
    return EvaluationResult(
        version=version,
        judge=judged(sum(scorer) / len(scorer)),
        gold=None if gold is None else judged(sum(gold) / len(gold)),
        kl_nats=0.5,
        kl_k1_nats=0.5,
        entropy_nats_per_token=1.0,
        answer_length_tokens=8.0,
        truncated_share=0.0,
        seconds=1.0,
        examples=(),
        domains={
            name: DomainWinRate(judge=judged(rate), gold=None if gold is None else judged(gold[place]))
            for place, (name, rate) in enumerate(zip(DOMAINS, scorer, strict=True))
        },
    )


def test_version_0_and_the_end_of_every_domain_are_evaluated_whatever_else_is(store: JobStore, tmp_path: Path) -> None:
    plain = evaluator(store, tmp_path, rounds=8)
    assert [version for version in range(9) if plain.due(version, last=False)] == [0]
    by_domain = evaluator(store, tmp_path, rounds=2, domains=DOMAINS, combine="mean")
    assert [version for version in range(9) if by_domain.due(version, last=False)] == [0, 2, 5, 8]
    store.add_version(by_domain.journal.job_id, 2, digest="d", learner_step=2)
    by_domain.record(result(2, DOMAIN_RATES[0]), {})
    assert not by_domain.due(2, last=True)


def test_the_averages_are_recorded_when_a_domain_ends_and_only_where_they_are_defined(
    store: JobStore, tmp_path: Path
) -> None:
    made = evaluator(store, tmp_path, rounds=2, domains=DOMAINS)
    job_id = made.journal.job_id
    for version, rates in ((0, DOMAIN_RATES[0]), (1, DOMAIN_RATES[0]), (2, DOMAIN_RATES[1]), (4, DOMAIN_RATES[2])):
        store.add_version(job_id, version, digest=f"d{version}", learner_step=version)
        made.record(result(version, rates, tuple(1 - rate for rate in rates)), {"sync_seconds": 1.0})
    series = store.series(job_id)
    assert [(point.version, point.value) for point in series["average_win_rate"]] == [
        (2, pytest.approx(0.8)),
        (4, pytest.approx(0.8)),
    ]
    for name, value in {"forgetting": 0.1, "backward_transfer": -0.1, "forward_transfer": 0.05}.items():
        (point,), (gold,) = series[name], series[f"gold_{name}"]
        assert (point.version, point.value) == (4, pytest.approx(value)), "one domain has nothing to forget"
        assert gold.value == pytest.approx({"forgetting": -0.1}.get(name, -value))
    versions = {record.version: record.metrics for record in store.versions(job_id)}
    assert versions[4]["forgetting"] == pytest.approx(0.1) and "average_win_rate" not in versions[1]
    assert versions[1]["sync_seconds"] == 1.0
    assert store.get(job_id).best_version == 4


def test_an_evaluation_that_is_made_again_after_a_restart_gives_the_same_averages(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = job_with_domains(store, tmp_path)
    plan = DomainPlan(ScheduleConfig(rounds=2, domains=DOMAINS))
    measured = {record.version: record.metrics for record in store.versions(job_id)}
    assert transfer_metrics(plan, 2, measured) == {"average_win_rate": pytest.approx(0.8)}, (
        "what came later is left out"
    )
    assert transfer_metrics(plan, 3, measured) == {}


def test_rows_are_the_versions_at_the_ends_of_domains_and_combinations_end_them() -> None:
    plan = DomainPlan(ScheduleConfig(rounds=1, domains=("a", "b"), combine="last"))
    measured = {version: {"win_rate/a": version / 10, "win_rate/b": 0.5} for version in range(4)}
    assert transfer_matrix(plan, measured, "scorer").rows == ((0.0, 0.5), (0.1, 0.5), (0.3, 0.5))
    gone = {version: metrics for version, metrics in measured.items() if version != 1}
    assert transfer_matrix(plan, gone, "scorer").rows == ((0.0, 0.5), (None, None), (0.3, 0.5))
    assert transfer_matrix(plan, measured, "gold").rows == ((None, None),)


@given(
    rounds=st.integers(1, 3),
    count=st.integers(1, 4),
    combine=st.sampled_from(["none", "mean"]),
    data=st.data(),
)
def test_averages_come_at_ends_alone_and_do_not_depend_on_later_versions(
    rounds: int, count: int, combine: Any, data: st.DataObject
) -> None:
    names = tuple(f"d{place}" for place in range(count))
    plan = DomainPlan(ScheduleConfig(rounds=rounds, domains=names, combine=combine))
    rates = st.fixed_dictionaries({f"win_rate/{name}": st.floats(0, 1) for name in names})
    measured = {version: data.draw(rates) for version in range(plan.last_version + 1)}
    for version in measured:
        until = {number: metrics for number, metrics in measured.items() if number <= version}
        found = transfer_metrics(plan, version, measured)
        assert found == transfer_metrics(plan, version, until)
        assert bool(found) == (plan.ends_at(version) is not None)


def test_a_job_without_domains_has_no_matrix(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    assert job_transfer(store.get(job_id), store.versions(job_id)) is None


def test_the_report_shows_a_heat_map_for_each_judge(store: JobStore, tmp_path: Path) -> None:
    def pictures(job_id: str) -> int:
        return write_report(store, job_id, tmp_path / f"{job_id}.html").read_text().count("<svg")

    one, both = job_with_domains(store, tmp_path), job_with_domains(store, tmp_path, gold=True)
    assert (pictures(one), pictures(both)) == (2, 3), "the win rates' picture, and one for each judge"
    page = (tmp_path / f"{both}.html").read_text()
    for text in ("Win rate by domain, by the gold judge", "v4, after late fees/eu", "forgetting +10.0%", "90%"):
        assert text in page, text
    assert "v6, after" not in page, "not learned yet"
    assert (
        "Win rate by domain"
        not in write_report(store, running_job(store, tmp_path), tmp_path / "plain.html").read_text()
    )


def test_a_domain_that_was_not_measured_leaves_its_cell_empty(store: JobStore, tmp_path: Path) -> None:
    job_id = job_with_domains(store, tmp_path)
    store.set_version_metrics(job_id, 2, {f"win_rate/{DOMAINS[0]}": float("nan")})
    assert "Win rate by domain" in write_report(store, job_id, tmp_path / "report.html").read_text()
    transfer = job_transfer(store.get(job_id), store.versions(job_id))
    assert transfer is not None and transfer.scorer.rows[1][0] is None and transfer.scorer.forgetting() is None


def test_the_end_of_a_run_shows_the_matrix(store: JobStore, tmp_path: Path) -> None:
    job = store.get(job_with_domains(store, tmp_path))
    told = io.StringIO()
    tell_end(job, Settings(home=tmp_path), Console(file=told, width=160))
    assert "v4, after late fees/eu" in told.getvalue() and "forgetting +10.0%" in told.getvalue()
