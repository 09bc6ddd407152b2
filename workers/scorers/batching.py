"""Which sequences go through the model together. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split sequences into batches of similar length.

    Longest first, ties in the order given, so that the plan is deterministic and a shortage of memory shows in the first batch.

    Args:
        lengths: tokens of each sequence.
        token_budget: most tokens of a batch, padding included. A sequence longer than this gets a batch of its own.

    Returns:
        Indices of ``lengths``, each exactly once.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * longest > token_budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
