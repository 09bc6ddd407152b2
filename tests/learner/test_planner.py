"""Plans, schedules and the reducer: pure, and the same on every rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.config import OptimizerConfig, ScheduleConfig
from learner.planner import plan_micro_batches, share_out
from learner.reducer import MeanReducer
from learner.schedule import LearningRate

lengths_of_examples = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=30)


@given(lengths_of_examples, st.integers(64, 400), st.integers(1, 4))
def test_every_example_is_planned_once_within_the_budget_and_on_one_rank(
    lengths: list[list[int]], budget: int, ranks: int
) -> None:
    plan = plan_micro_batches(lengths, budget)
    assert sorted(i for batch in plan for i in batch.examples) == list(range(len(lengths)))
    for batch in plan:
        texts = [length for i in batch.examples for length in lengths[i]]
        assert batch.tokens == max(texts) * len(texts)
        assert batch.tokens <= budget or len(batch.examples) == 1
    shares = share_out(plan, ranks)
    assert sorted(b.examples for share in shares for b in share) == sorted(b.examples for b in plan)
    loads = [sum(batch.tokens for batch in share) for share in shares]
    assert max(loads) - min(loads) <= max(batch.tokens for batch in plan)


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


def test_the_mean_reducer_adds_the_ranks_shares() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(3))]
    weights[0].grad = torch.ones(2, 2)

    def two_ranks(vector: torch.Tensor) -> None:
        vector.mul_(2)

    MeanReducer(two_ranks).reduce(weights)
    assert weights[0].grad.tolist() == [[2, 2], [2, 2]]
    assert weights[1].grad is not None and weights[1].grad.tolist() == [0, 0, 0]
