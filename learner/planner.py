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


def share_out(lengths: Sequence[Sequence[int]], ranks: int) -> list[tuple[int, ...]]:
    """Deal the examples, the largest first, to the ranks to and fro: so many each, give or take one, and about as many tokens.

    Where there are fewer examples than ranks, the first ranks have one each.

    Args:
        lengths: as of :func:`plan_micro_batches`.
        ranks: how many there are.

    Returns:
        For each rank the numbers of its examples, in order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-sum(lengths[i]), i))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for place, i in enumerate(order):
        turn, seat = divmod(place, ranks)
        # the last turn may be short, and goes to the first ranks
        back = turn % 2 == 1 and (turn + 1) * ranks <= len(order)
        shares[ranks - 1 - seat if back else seat].append(i)
    return [tuple(sorted(share)) for share in shares]


def plan_share(lengths: Sequence[Sequence[int]], budget_tokens: int, rank: int, ranks: int) -> list[MicroBatch]:
    """The micro-batches of one rank's share of the examples: of all, where it is the only one."""
    share = share_out(lengths, ranks)[rank]
    plan = plan_micro_batches([lengths[i] for i in share], budget_tokens)
    return [MicroBatch(tuple(share[place] for place in part.examples), part.tokens) for part in plan]
