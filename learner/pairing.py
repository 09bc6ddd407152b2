"""From K scored answers to training records. Pure: the same group always gives the same records."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from learner.config import PairingConfig
from learner.errors import InputError
from learner.objectives.parameters import ObjectiveParameters, SppoParameters
from learner.pairing_rules import resolve_rule
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
from learner.seeds import derive_seed

Record = tuple[int, ...]
"""Places in a selection of the answers that one loss is taken over, best first, or as they were given."""


@dataclass(frozen=True)
class Selection:
    """The R answers of a group that are learned from, best first or as given, and the records that are made of them.

    ``win_probabilities`` ``[R]`` are measured against all K answers. ``pair_logits`` ``[R, R]`` and ``scores`` ``[R]``
    are divided by the scorer's temperature; the former are in the objective's way of making probabilities, so that
    their logistic function is the win matrix; the latter are mean order-averaged logits against all K.
    """

    indices: tuple[int, ...]
    win_probabilities: Array
    pair_logits: Array
    scores: Array
    records: tuple[Record, ...]


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
    log_ratios: Sequence[float] | None = None,
) -> Selection:
    """The answers that the objective learns from, and how they make records.

    Args:
        group: a scored group for which :func:`skip_reason` is None.
        objective_parameters: tell which answers, and how logits become probabilities.
        pairing: the rule that makes records.
        truncated: what happens to answers that were cut off.
        temperature: the scorer's.
        log_ratios: for the rule `did`: of each of the K answers, the writer's log-probability minus the reference's.
    """
    sppo = objective_parameters if isinstance(objective_parameters, SppoParameters) else None
    probabilities: Probabilities = sppo.probabilities if sppo else "paper"
    kept = usable_answers(group, truncated)
    logits = effective_logits(group, truncated)
    order, chances = _ranking(logits, temperature, probabilities)
    rule = resolve_rule(objective_parameters, pairing)
    if rule == "as-given":  # who wrote an answer follows from its place
        order = sorted(order)
    texts = [group.answers[kept[i]].text for i in order]
    if rule in ("top-vs-rest", "all"):
        places: list[Record] = [tuple(range(len(order)))]
    elif rule == "best-worst":
        places = [(0, len(order) - 1)]
    elif rule == "as-given":
        places = [(0, 1)]
    elif rule == "did":
        if log_ratios is None:
            raise InputError("pairing.rule: did draws by log-ratios of all answers, and none were given")
        beta = objective_parameters.summed_beta
        ratios = [log_ratios[kept[i]] for i in order]
        places = [(0, _draw_rejected(ratios, texts, beta, derive_seed("did", group.group_id)))]
    else:
        matrix = win_matrix(logits, temperature)[np.ix_(order, order)]
        places = _pairs(matrix, texts, pairing)
        if rule == "random-pair":
            places = [random.Random(derive_seed("random-pair", group.group_id)).choice(places)]
    used = sorted({place for record in places for place in record})
    order = [order[place] for place in used]
    scores = order_averaged(logits).mean(axis=1) / temperature
    return Selection(
        indices=tuple(kept[i] for i in order),
        win_probabilities=chances[order],
        pair_logits=win_logits(logits, temperature, probabilities)[order][:, order],
        scores=scores[order],
        records=tuple(tuple(used.index(place) for place in record) for record in places),
    )


def _pairs(matrix: Array, texts: Sequence[str], pairing: PairingConfig) -> list[Record]:
    """All pairs with a preference beyond the tie margin, the better answer first; the extremes where there is none."""
    pairs: list[Record] = []
    for i, j in combinations(range(len(texts)), 2):
        decided = abs(matrix[i, j] - 0.5) > pairing.tie_margin or pairing.ties == "keep"
        if decided and (texts[i] != texts[j] or pairing.identical == "keep"):
            pairs.append((i, j) if matrix[i, j] >= 0.5 else (j, i))
    return pairs or [(0, len(texts) - 1)]


def _draw_rejected(log_ratios: Sequence[float], texts: Sequence[str], beta: float, seed: int) -> int:
    """The place of the rejected answer, drawn with weights ``(reference / policy)^(1 + beta)`` (arXiv 2505.23761).

    The candidates are the answers that are not the best one, which the policy itself wrote.
    """
    candidates = [place for place in range(1, len(texts)) if texts[place] != texts[0]] or [len(texts) - 1]
    log_weights = np.array([-(1 + beta) * log_ratios[place] for place in candidates])
    weights = np.exp(log_weights - log_weights.max())
    return random.Random(seed).choices(candidates, weights.tolist())[0]
