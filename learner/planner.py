"""Splits an optimizer batch into micro-batches under a token budget, and shares them out among ranks (rule 12).

Pure and deterministic: every rank computes the same plan. Losses are sums over the global count, so the plan never
changes the gradient, only the memory and the time that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together. ``tokens`` counts the padding too."""

    examples: tuple[int, ...]
    tokens: int


def plan_micro_batches(lengths: Sequence[Sequence[int]], budget_tokens: int) -> list[MicroBatch]:
    """Group examples of like length.

    An example is a prompt's answers, which stay together. One that is larger than the budget by itself goes alone.

    Args:
        lengths: per example, the tokens (prompt and answer) of each of its texts.
        budget_tokens: texts x longest text of a micro-batch is at most this.

    Returns:
        Micro-batches, the longest first, so that memory runs out at once or not at all.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-max(lengths[i]), i))
    plan: list[MicroBatch] = []
    members: list[int] = []
    longest = texts = 0
    for i in order:
        if members and longest * (texts + len(lengths[i])) > budget_tokens:
            plan.append(MicroBatch(tuple(members), longest * texts))
            members, longest, texts = [], 0, 0
        longest = longest or max(lengths[i])
        texts += len(lengths[i])
        members.append(i)
    if members:
        plan.append(MicroBatch(tuple(members), longest * texts))
    return plan


def share_out(plan: Sequence[MicroBatch], ranks: int) -> list[list[MicroBatch]]:
    """Give each micro-batch, the largest first, to the rank that has the fewest tokens so far."""
    shares: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for micro_batch in sorted(plan, key=lambda m: (-m.tokens, m.examples)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        shares[rank].append(micro_batch)
        loads[rank] += micro_batch.tokens
    return shares
