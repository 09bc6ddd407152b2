"""How healthy the scorer's signal is, counted over many results. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from workers.scorers.base import Comparison, ScoreResult


@dataclass
class SignalHealth:
    """Counts over scored groups, filled with ``add`` and read with ``as_metrics``.

    ``temperature`` divides the logits, as it does where they become win probabilities.
    """

    temperature: float = 1.0
    groups: int = 0
    answers: int = 0
    truncated_candidates: int = 0
    pairs: int = 0
    identical_pairs: int = 0
    tied_pairs: int = 0
    position_bias_sum: float = 0.0
    triples: int = 0
    intransitive_triples: int = 0

    def add(self, comparison: Comparison, result: ScoreResult) -> None:
        """Count one comparison with its result.

        Raises:
            ValueError: the logits are not ``[K, K]`` for K answers.
        """
        answers = comparison.answers
        ordered = result.ordered_logits.astype(np.float64) / self.temperature
        if ordered.shape != (len(answers), len(answers)):
            raise ValueError(f"ordered logits of shape {ordered.shape} for {len(answers)} answers")
        wins = (ordered - ordered.T) / 2
        self.groups += 1
        self.answers += len(answers)
        self.truncated_candidates += result.truncated_candidates
        for i, j in combinations(range(len(answers)), 2):
            self.pairs += 1
            self.position_bias_sum += abs(ordered[i, j] + ordered[j, i]) / 2
            if answers[i] == answers[j]:
                self.identical_pairs += 1
            elif wins[i, j] == 0:
                self.tied_pairs += 1
        for i, j, k in combinations(range(len(answers)), 3):
            self.triples += 1
            around = (wins[i, j], wins[j, k], wins[k, i])
            self.intransitive_triples += all(w > 0 for w in around) or all(w < 0 for w in around)

    def as_metrics(self) -> dict[str, float]:
        """Shares and means; 0 where nothing was counted.

        * ``position_bias``: mean ``|m_ij + m_ji| / 2`` over pairs, the part of the logit that only the order explains.
        * ``tie_share``: pairs of different answers whose order-averaged logit is 0.
        * ``identical_share``: pairs of answers with the same text.
        * ``intransitive_share``: triples in which, by the order-averaged logits, each answer beats the next in a circle.
        * ``truncated_candidate_share``: answers that the scorer had to cut.
        """
        return {
            "position_bias": _share(self.position_bias_sum, self.pairs),
            "tie_share": _share(self.tied_pairs, self.pairs - self.identical_pairs),
            "identical_share": _share(self.identical_pairs, self.pairs),
            "intransitive_share": _share(self.intransitive_triples, self.triples),
            "truncated_candidate_share": _share(self.truncated_candidates, self.answers),
        }


def _share(part: float, whole: int) -> float:
    return float(part) / whole if whole else 0.0
