"""Evaluations: one win rate over all held-out prompts, and one for each of their domains, by the scorer and by the gold judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import PairingConfig
from learner.records import Answer, FinishReason, Prompt, ResponseGroup, SamplingParameters
from workers.config import FunctionScorer, ScorerConfig, ScorerResources
from workers.messages import DomainWinRate, EvaluationAnswer, EvaluationResult, JudgedWinRate
from workers.scorers import function
from workers.scorers.actor import ScorerSetup, ScorerWorker
from workers.scorers.base import Comparison, ScoreResult
from workers.scorers.build import build_scorer
from workers.scorers.judging import by_domain, judge

LEASE_SECONDS = 1e9


def by_length(_prompt: Prompt, answers: Sequence[str]) -> list[float]:
    """More is better."""
    return [float(len(answer)) for answer in answers]


def by_shortness(_prompt: Prompt, answers: Sequence[str]) -> list[float]:
    """Less is better."""
    return [-float(len(answer)) for answer in answers]


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"length": "by_length", "shortness": "by_shortness"}

    def entry_points(group: str, name: str) -> list[EntryPoint]:
        return [EntryPoint(name, f"{__name__}:{points[name]}", group)]

    monkeypatch.setattr(function, "entry_points", entry_points)


def comparison(number: int, domain: str | None, first: str, second: str) -> Comparison:
    return Comparison(Prompt.of(f"p{number}", "?", domain), (first, second))


def test_each_domain_has_its_win_rate_and_prompts_without_one_count_in_the_whole() -> None:
    judged = judge(
        build_scorer(FunctionScorer(name="length")),
        [
            comparison(0, "b", "long", "s"),
            comparison(1, "a", "s", "long"),
            comparison(2, "b", "same", "tied"),
            comparison(3, None, "long", "s"),
        ],
        tie_margin=0.0,
        temperature=1.0,
    )
    assert (judged.overall.mean, judged.overall.tie_rate, judged.overall.count) == (0.625, 0.25, 4)
    assert list(judged.domains) == ["a", "b"]
    assert (judged.domains["a"].mean, judged.domains["a"].count) == (0.0, 1)
    assert (judged.domains["b"].mean, judged.domains["b"].tie_rate, judged.domains["b"].count) == (0.75, 0.5, 2)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 3), st.integers(1, 3)), min_size=1))
def test_the_whole_is_the_mean_of_the_domains_by_their_counts(drawn: list[tuple[str, int, int]]) -> None:
    comparisons = [comparison(i, domain, "x" * one, "x" * other) for i, (domain, one, other) in enumerate(drawn)]
    judged = judge(build_scorer(FunctionScorer(name="length")), comparisons, tie_margin=0.0, temperature=1.0)
    rates = judged.domains.values()
    assert sum(rate.count for rate in rates) == judged.overall.count == len(drawn)
    assert sum(rate.mean * rate.count for rate in rates) / len(drawn) == pytest.approx(judged.overall.mean)
    assert all(rate.length_controlled is None for rate in rates)
    assert by_domain(judged, judged) == {
        domain: DomainWinRate(judge=rate, gold=rate) for domain, rate in judged.domains.items()
    }


def answer(prompt: Prompt, text: str) -> EvaluationAnswer:
    written = Answer(
        text=text,
        token_ids=(5, 6),
        logprobs=(-1.0, -0.5),
        finish_reason=FinishReason.STOP,
        module="fast",
        version=3,
        adapter_digest="d" * 64,
        sampling=SamplingParameters(temperature=1, top_p=1, top_k=0, max_tokens=8),
        seed=0,
        sampler="sampler-0",
    )
    return EvaluationAnswer(prompt=prompt, answer=written, reference_logprobs=(-1.0, -1.0))


def setup_of(folder: Path) -> ScorerSetup:
    return ScorerSetup(
        name="scorer",
        logs=folder,
        scorer=ScorerConfig(model=FunctionScorer(name="length")),
        resources=ScorerResources(),
        gold="shortness",
        pairing=PairingConfig(),
        truncated="keep",
        queue="queue",
        put_timeout_seconds=1.0,
        alone=True,
        tie_margin=0.0,
    )


async def test_a_logit_that_is_no_number_fails_its_group_and_reaches_no_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ScorerWorker(setup_of(tmp_path), LEASE_SECONDS)
    await worker.start()
    assert worker.scorer is not None
    results = [ScoreResult(np.full((2, 2), np.nan), truncated_candidates=0)]
    monkeypatch.setattr(worker.scorer, "score", lambda comparisons: results)
    written = answer(Prompt.of("p0", "?"), "a").answer
    group = ResponseGroup(
        group_id="g",
        round=0,
        index=0,
        version=3,
        prompt=Prompt.of("p0", "?"),
        prompt_token_ids=(1,),
        answers=(written,) * 2,
    )
    with pytest.raises(ValueError, match="gave a logit that is no finite number"):
        await worker.score(group)
    await worker.stop()


async def test_an_evaluation_gives_both_judges_rates_by_domain_under_stable_metric_names(tmp_path: Path) -> None:
    worker = ScorerWorker(setup_of(tmp_path), LEASE_SECONDS)
    await worker.start()
    first, second = Prompt.of("p0", "?", "bills"), Prompt.of("p1", "?", "late fees/eu")
    policy = [[answer(first, "long")], [answer(second, "s")]]
    start = [[answer(second, "long"), answer(first, "s")]]
    result = await worker.evaluate(3, 0.0, len(policy), *policy, *start)
    await worker.stop()
    metrics = result.as_metrics()
    assert metrics["win_rate"] == metrics["gold_win_rate"] == 0.5
    assert (metrics["win_rate/bills"], metrics["gold_win_rate/bills"]) == (1.0, 0.0)
    assert (metrics["win_rate/late fees/eu"], metrics["gold_win_rate/late fees/eu"]) == (0.0, 1.0)
    for name in ("length_controlled_win_rate", "gold_length_controlled_win_rate"):
        assert 0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1
    for name in metrics:
        if name.startswith(("win_rate/", "gold_win_rate/")):
            low, high = (metrics[name.replace("win_rate/", f"win_rate_{end}/", 1)] for end in ("low", "high"))
            assert 0 <= low <= metrics[name] <= high <= 1


def test_the_length_controlled_win_rate_takes_back_what_mere_length_has_won() -> None:
    # length alone decides, and the first side is longer in three of four comparisons
    comparisons = [comparison(i, None, "x" * (9 if i % 4 else 5), "x" * 7) for i in range(64)]
    judged = judge(build_scorer(FunctionScorer(name="length")), comparisons, tie_margin=0.0, temperature=1.0)
    assert judged.overall.mean == 0.75 and judged.overall.length_controlled is not None
    equal = judged.overall.length_controlled
    assert equal.low <= equal.mean <= equal.high and equal.mean == pytest.approx(0.5, abs=0.01)
    tempered = judge(build_scorer(FunctionScorer(name="length")), comparisons[1:4], tie_margin=0.0, temperature=4.0)
    assert tempered.overall.length_controlled is not None  # lengths do not vary here: the mean soft preference
    assert tempered.overall.length_controlled.mean == pytest.approx(1 / (1 + math.exp(-2 / 4)), abs=1e-3)


def test_without_domains_and_gold_judge_there_are_no_metrics_of_them() -> None:
    rate = JudgedWinRate(mean=0.5, low=0.4, high=0.6, tie_rate=0.0, count=64)
    result = EvaluationResult(
        version=0,
        judge=rate,
        gold=None,
        kl_nats=0.0,
        kl_k1_nats=0.0,
        entropy_nats_per_token=1.0,
        answer_length_tokens=8.0,
        truncated_share=0.0,
        seconds=1.0,
        examples=(),
        domains={"a": DomainWinRate(judge=rate)},
    )
    assert {name for name in result.as_metrics() if "/" in name} == {
        "win_rate/a",
        "win_rate_low/a",
        "win_rate_high/a",
    }
    plain = result.model_copy(update={"domains": {}})
    assert not [name for name in plain.as_metrics() if "/" in name or name.startswith("gold")]
