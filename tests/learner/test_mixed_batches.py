"""One optimizer batch may hold self-play of several answers and people's preferences between two."""

from __future__ import annotations

import math

import pytest

from learner.objectives import objective_kinds
from learner.preference import CERTAIN_LOGIT
from learner.trainer import Trainer
from tests.learner.builders import answer, bradley_terry, group, random_groups, tiny_model, trainer_config

REFUSED = {"xpo", "nash-md"}
"""Refused with feedback at validation."""


@pytest.mark.parametrize("kind", [kind for kind in objective_kinds() if kind not in REFUSED])
def test_every_objective_learns_from_self_play_and_preferences_in_one_batch(kind: str) -> None:
    adapters = {"rank": 4, "alpha": 8, "slow": "chase" if kind == "chase" else "off"}
    trainer = Trainer(trainer_config(objective={"kind": kind}, adapters=adapters), lambda *_: {}, base=tiny_model())
    trainer.begin_version(0, 0)
    preferred = [
        group([answer([4 + n, 5, 2], None), answer([6, 2], None)], bradley_terry([CERTAIN_LOGIT, 0]), index=10 + n)
        for n in range(2)
    ]
    own = random_groups(2)
    report = trainer.step([own[0], preferred[0], own[1], preferred[1]], 0)
    assert report.pairs == 4 and math.isfinite(report.metrics["loss"])
    assert math.isfinite(report.metrics["gradient_norm"]) and report.metrics["gradient_norm"] > 0
    assert report.metrics["staleness_max"] == 0, "people's answers have no age"
