"""What every preference scorer takes and gives.

Free of torch and transformers, so that the parts which only pass results on can import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learner.records import Prompt, ScorerIdentity

FloatMatrix = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """One prompt with K answers that are compared with each other."""

    prompt: Prompt
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ScoreResult:
    """The ordered logits of one comparison, and what had to be cut to get them.

    ``ordered_logits`` is ``[K, K]`` float32: entry ``[i, j]`` is the logit that answer i beats answer j when i is shown first.
    The diagonal is 0. ``truncated_candidates`` counts answers (not pairs) that were cut.
    """

    ordered_logits: FloatMatrix
    truncated_candidates: int = 0
    truncated_source: bool = False


class PreferenceScorer(Protocol):
    """Compares answers. A scorer's result for one comparison does not depend on the others in the call."""

    @property
    def identity(self) -> ScorerIdentity:
        """Which scorer this is: kind, name and a digest of its weights or its release."""
        ...

    def score(self, comparisons: Sequence[Comparison]) -> list[ScoreResult]:
        """Score each comparison; results come in the order of the arguments."""
        ...


def logits_of_rewards(rewards: Sequence[float]) -> FloatMatrix:
    """Ordered logits of a Bradley-Terry model: entry ``[i, j]`` is ``rewards[i] - rewards[j]`` in both orders."""
    column = np.asarray(rewards, dtype=np.float64)
    return (column[:, None] - column[None, :]).astype(np.float32)
