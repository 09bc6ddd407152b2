"""From K scored answers to those that are learned from. Pure: the same group always gives the same selection."""

from __future__ import annotations

from dataclasses import dataclass

from learner.config import PairingConfig
from learner.objectives.parameters import ObjectiveParameters, SppoParameters
from learner.preference import (
    Array,
    Probabilities,
    Truncated,
    effective_logits,
    order_averaged,
    usable_answers,
    win_logits,
    win_matrix,
    win_probabilities,
)
from learner.records import ScoredGroup, SkipReason


@dataclass(frozen=True)
class Selection:
    """The R answers of a group that are learned from, best first.

    ``win_probabilities`` ``[R]`` are measured against all K answers. ``pair_logits`` ``[R, R]`` and ``scores`` ``[R]``
    are divided by the scorer's temperature; the former are in the objective's way of making probabilities, so that
    their logistic function is the win matrix; the latter are mean order-averaged logits against all K.
    """

    indices: tuple[int, ...]
    win_probabilities: Array
    pair_logits: Array
    scores: Array


def _ranking(logits: Array, temperature: float, probabilities: Probabilities) -> tuple[list[int], Array]:
    """Positions from best to worst by win probability, the earlier answer first among equals; and the probabilities."""
    chances = win_probabilities(win_matrix(logits, temperature, probabilities))
    return sorted(range(len(chances)), key=lambda i: (-chances[i], i)), chances


def skip_reason(
    group: ScoredGroup, pairing: PairingConfig, truncated: Truncated = "keep", temperature: float = 1.0
) -> SkipReason | None:
    """Why nothing can be learned from a group, or None.

    Args:
        group: a scored group.
        pairing: what counts as identical or tied, and whether such groups are kept.
        truncated: what happens to answers that were cut off.
        temperature: the scorer's.
    """
    kept = usable_answers(group, truncated)
    if len(kept) < 2:
        return SkipReason.TRUNCATED
    if pairing.identical == "skip" and len({group.answers[i].text for i in kept}) == 1:
        return SkipReason.IDENTICAL
    if pairing.ties == "skip":
        logits = effective_logits(group, truncated)
        order, _ = _ranking(logits, temperature, "paper")
        chance = win_matrix(logits, temperature)[order[0], order[-1]]
        if abs(chance - 0.5) <= pairing.tie_margin:
            return SkipReason.TIE
    return None


def select_answers(
    group: ScoredGroup,
    objective_parameters: ObjectiveParameters,
    pairing: PairingConfig,
    truncated: Truncated = "keep",
    temperature: float = 1.0,
) -> Selection:
    """The answers that the objective learns from: the best and the worst, or all of them where SPPO asks for that.

    Args:
        group: a scored group for which :func:`skip_reason` is None.
        objective_parameters: tell which answers, and how logits become probabilities.
        pairing: the rule that makes a pair (`best-worst` is the only one yet).
        truncated: what happens to answers that were cut off.
        temperature: the scorer's.
    """
    sppo = objective_parameters if isinstance(objective_parameters, SppoParameters) else None
    probabilities: Probabilities = sppo.probabilities if sppo else "paper"
    kept = usable_answers(group, truncated)
    logits = effective_logits(group, truncated)
    order, chances = _ranking(logits, temperature, probabilities)
    if not (sppo and sppo.answers == "all"):
        order = [order[0], order[-1]]
    scores = order_averaged(logits).mean(axis=1) / temperature
    return Selection(
        indices=tuple(kept[i] for i in order),
        win_probabilities=chances[order],
        pair_logits=win_logits(logits, temperature, probabilities)[order][:, order],
        scores=scores[order],
    )
