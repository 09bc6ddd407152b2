"""Plans and schedules: pure, and the same on every rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.config import OptimizerConfig, ScheduleConfig
from learner.planner import plan_micro_batches, plan_share, share_out
from learner.schedule import LearningRate

lengths_of_examples = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=30)


@given(lengths_of_examples, st.integers(64, 400), st.integers(1, 4))
def test_every_example_is_planned_once_within_the_budget_and_on_one_rank(
    lengths: list[list[int]], budget: int, ranks: int
) -> None:
    plan = [batch for rank in range(ranks) for batch in plan_share(lengths, budget, rank, ranks)]
    assert sorted(i for batch in plan for i in batch.examples) == list(range(len(lengths)))
    for batch in plan:
        texts = [length for i in batch.examples for length in lengths[i]]
        assert batch.tokens == max(texts) * len(texts)
        assert batch.tokens <= budget or len(batch.examples) == 1


@given(lengths_of_examples, st.integers(1, 40))
def test_ranks_get_equally_many_examples_of_about_equally_many_tokens(lengths: list[list[int]], ranks: int) -> None:
    shares = share_out(lengths, ranks)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)
    tokens = [sum(sum(lengths[i]) for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= 2 * max(map(sum, lengths))


@given(lengths_of_examples, st.integers(64, 400))
def test_the_only_rank_has_the_whole_plan(lengths: list[list[int]], budget: int) -> None:
    assert plan_share(lengths, budget, 0, 1) == plan_micro_batches(lengths, budget)


def test_the_longest_examples_come_first_and_nothing_makes_no_plan() -> None:
    assert [b.examples for b in plan_micro_batches([[5, 5], [40, 9], [6, 6]], 64)] == [(1,), (2, 0)]
    assert plan_micro_batches([], 64) == []


def schedule(**changes: object) -> ScheduleConfig:
    return ScheduleConfig.model_validate({"rounds": 2, "prompts_per_round": 40, "prompts_per_step": 4} | changes)


def test_one_schedule_spans_the_job() -> None:
    rate = LearningRate(OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1), schedule())
    assert rate.total_steps == 20
    assert [rate.at(step, 0) for step in (0, 1, 2, 11)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert rate.at(19, 0) == rate.at(500, 0) > 0


def test_each_round_may_begin_its_own_schedule_drawn_for_more_passes_than_are_made() -> None:
    recipe = schedule(schedule_epochs=18, stop_after_epochs=1)
    rate = LearningRate(OptimizerConfig(learning_rate=1.0, warmup_ratio=0.0, span="round"), recipe)
    assert rate.total_steps == 180
    assert rate.at(10, 0) == rate.at(0, 0) == 1.0
    assert rate.at(0, 9) == pytest.approx(1 - 9 / 180)


@pytest.mark.parametrize(("shape", "middle"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_shapes(shape: str, middle: float) -> None:
    config = OptimizerConfig.model_validate({"learning_rate": 1.0, "warmup_ratio": 0, "schedule": shape})
    assert LearningRate(config, schedule()).at(10, 0) == pytest.approx(middle)
