"""The learning rate at each optimizer step. Pure.

SPPO's recipe needs two things apart: how many passes the schedule is drawn for (`schedule_epochs`) and how many are
made (`stop_after_epochs`); and whether each round starts the schedule again (`span: round`) or one spans the job.
"""

from __future__ import annotations

import math

from learner.config import OptimizerConfig, ScheduleConfig


class LearningRate:
    """Learning rates by step."""

    def __init__(self, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> None:
        self.optimizer = optimizer
        steps_per_pass = math.ceil(schedule.prompts_per_round / schedule.prompts_per_step)
        rounds = {"job": schedule.training_rounds, "domain": schedule.rounds, "round": 1}[optimizer.span]
        self.total_steps = rounds * schedule.schedule_epochs * steps_per_pass
        self.warmup_steps = math.ceil(optimizer.warmup_ratio * self.total_steps)

    def at(self, learner_step: int, round_step: int, domain_step: int = 0) -> float:
        """The rate of the next step.

        Args:
            learner_step: steps made since the job began.
            round_step: steps made since the round began.
            domain_step: steps made since the domain began.

        Past the end of the schedule (a round may take more steps than its prompts make whole batches) its last rate
        stays.
        """
        step = {"job": learner_step, "domain": domain_step, "round": round_step}[self.optimizer.span]
        step = min(step, self.total_steps - 1)
        peak = self.optimizer.learning_rate
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        if self.optimizer.schedule == "linear":
            return peak * (1 - done)
        if self.optimizer.schedule == "cosine":
            return peak * (1 + math.cos(math.pi * done)) / 2
        return peak
