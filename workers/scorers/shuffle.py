"""The control experiment: scores without a signal (``scorer.shuffle``). Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from learner.seeds import derive_seed
from workers.scorers.base import ScoreResult


def shuffled(result: ScoreResult, group_id: str) -> ScoreResult:
    """Give the scores to answers at random: rows and columns are permuted alike, by a seed that ``group_id`` determines.

    The set of logits stays what it was, so margins and ties look as they did; only which answer they belong to is lost.
    """
    order = np.random.default_rng(derive_seed("scorer.shuffle", group_id)).permutation(len(result.ordered_logits))
    return replace(result, ordered_logits=result.ordered_logits[np.ix_(order, order)])
