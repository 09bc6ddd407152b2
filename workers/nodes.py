"""Questions to every node of the cluster that this process is connected to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers import cluster
from workers.roles import Role, carried

Answer = TypeVar("Answer")

ASK_TIMEOUT_SECONDS = 120.0
"""Longest wait for one answer: the node may have to start a process first."""

SETTING = "ASK_TIMEOUT_SECONDS in workers/nodes.py"

CLOCK_QUESTIONS = 3
"""Times that a clock is asked; the quickest answer counts."""


@dataclass(frozen=True)
class NodeAnswer(Generic[Answer]):
    """What one node said.

    ``clock_offset_seconds``: its time minus ours, known to ``clock_doubt_seconds``.
    """

    answer: Answer
    roles: frozenset[Role]
    clock_offset_seconds: float
    clock_doubt_seconds: float


def ask_nodes(question: Callable[..., Answer], *arguments: Any) -> list[NodeAnswer[Answer]]:
    """Call a function of an installed module, not a built-in one, on every living node.

    Raises:
        CallTimeout: a node did not answer.
    """
    ask, ask_time = ray.remote(question), ray.remote(_time)
    found = []
    for node in (node for node in ray.nodes() if node["Alive"]):
        here = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}
        answer = cluster.call(ask.options(**here).remote(*arguments), ASK_TIMEOUT_SECONDS, SETTING)
        offset, doubt = min(
            (_clock(ask_time.options(**here)) for _ in range(CLOCK_QUESTIONS)), key=lambda seen: seen[1]
        )
        found.append(NodeAnswer(answer, carried(node["Resources"]), offset, doubt))
    return found


def _clock(ask_time: Any) -> tuple[float, float]:
    """A node's clock against ours, and half of what the question took: it was somewhere in between."""
    began = time.time()
    theirs = cluster.call(ask_time.remote(), ASK_TIMEOUT_SECONDS, SETTING)
    ended = time.time()
    return theirs - (began + ended) / 2, (ended - began) / 2


def _time() -> float:
    return time.time()
