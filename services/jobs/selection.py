"""Which version is best, and when to stop: decisions on evaluations alone. Pure.

Preference training declines after some rounds (SPPO and DPO both do), so the newest version is not taken for the best one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """One version against version 0 on held-out prompts, ties counted one half. ``kl_nats`` is per answer."""

    version: int
    win_rate: float
    kl_nats: float | None = None


def best_version(evaluations: Sequence[Evaluation]) -> int | None:
    """The version with the highest win rate by the held-out judge; the earlier one of equals; None without evaluations."""
    if not evaluations:
        return None
    return max(evaluations, key=lambda evaluation: (evaluation.win_rate, -evaluation.version)).version


def stop_reason(evaluations: Sequence[Evaluation], early_stop_rounds: int | None, max_kl: float | None) -> str | None:
    """Why the job should stop now, in words, or None.

    Args:
        evaluations: all so far, oldest first.
        early_stop_rounds: evaluations without a better win rate that are borne.
        max_kl: nats an answer that the KL to version 0 may reach.
    """
    if not evaluations:
        return None
    newest = evaluations[-1]
    if max_kl is not None and newest.kl_nats is not None and newest.kl_nats > max_kl:
        return f"the KL to version 0 is {newest.kl_nats:.2f} nats an answer, above schedule.max_kl: {max_kl:g}"
    if early_stop_rounds is not None:
        best = best_version(evaluations)
        since = sum(evaluation.version > (best or 0) for evaluation in evaluations)
        if since >= early_stop_rounds:
            return f"{since} evaluations without a better win rate than version {best}'s (schedule.early_stop_rounds)"
    return None
