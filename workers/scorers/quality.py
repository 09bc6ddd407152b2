"""What a preference scorer is worth on labelled pairs: accuracy, position bias, calibration. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.scorers.training_config import CalibrationBin

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Quality:
    """See ``ScorerReport``, whose fields these are."""

    ties: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    log_loss: float
    position_bias: float
    flip_share: float
    calibration_error: float
    calibration: tuple[CalibrationBin, ...]


def measure(
    forward: Sequence[float] | NDArray[np.float64],
    backward: Sequence[float] | NDArray[np.float64],
    preference_b: Sequence[float] | NDArray[np.float64],
    *,
    bins: int = 10,
) -> Quality:
    """Judge predictions against labels.

    Args:
        forward: ``m_ab`` of each pair, the logit that a beats b with a shown first.
        backward: ``m_ba``, the logit that b beats a with b shown first.
        preference_b: labels in [0, 1]; 1/2 is a tie.
        bins: equal bins of confidence, from 1/2 to 1, of the calibration table.
    """
    ab, ba = np.asarray(forward, dtype=np.float64), np.asarray(backward, dtype=np.float64)
    label = 1.0 - np.asarray(preference_b, dtype=np.float64)
    if not len(ab):
        raise ValueError("there are no pairs to measure")
    logit = (ab - ba) / 2
    # log(1 + exp(-x)) without overflow, on either side.
    log_loss = label * np.logaddexp(0, -logit) + (1 - label) * np.logaddexp(0, logit)
    # Which answer is called a is the file's choice, and no scorer can know it; so calibration looks at the preferred answer.
    confidence = np.exp(-np.logaddexp(0, -np.abs(logit)))
    preferred = np.where(logit == 0, 0.5, np.where(logit > 0, label, 1 - label))

    decided = label != 0.5
    hits = np.where(logit == 0, 0.5, (logit > 0) == (label > 0.5))[decided]
    accuracy, low, high = _wilson(float(hits.sum()), int(decided.sum()))
    table = calibration_table(confidence, preferred, bins)
    error = sum(
        b.pairs * abs(b.predicted - b.observed) for b in table if b.predicted is not None and b.observed is not None
    )
    return Quality(
        ties=int((~decided).sum()),
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        log_loss=float(log_loss.mean()),
        position_bias=float(np.abs(ab + ba).mean() / 2),
        flip_share=float((ab * ba > 0).mean()),
        calibration_error=error / len(ab),
        calibration=table,
    )


def calibration_table(
    confidence: NDArray[np.float64], label: NDArray[np.float64], bins: int
) -> tuple[CalibrationBin, ...]:
    """Mean confidence and mean label in each of ``bins`` equal bins of [1/2, 1]; empty bins have neither.

    Args:
        confidence: the predicted probability of the preferred answer, at least 1/2.
        label: how probable it is by the labels that the preferred answer is better.
        bins: how many.
    """
    index = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    rows = []
    for b in range(bins):
        inside = index == b
        count = int(inside.sum())
        rows.append(
            CalibrationBin(
                low=0.5 + b / (2 * bins),
                high=0.5 + (b + 1) / (2 * bins),
                pairs=count,
                predicted=float(confidence[inside].mean()) if count else None,
                observed=float(label[inside].mean()) if count else None,
            )
        )
    return tuple(rows)


def _wilson(hits: float, count: int) -> tuple[float | None, float | None, float | None]:
    """Share of hits with Wilson's 95 % interval (Wilson 1927, equation 1)."""
    if not count:
        return None, None, None
    share, z2 = hits / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return share, max(0.0, centre - half), min(1.0, centre + half)
