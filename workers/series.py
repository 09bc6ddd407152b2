"""Names of metrics that there are several of: one for each worker, stage or reason. Pure.

``groups_failed_total{stage=sampler}`` is one series of the metric ``groups_failed_total``; ``win_rate/bills`` is the win rate of the domain
``bills``, which may have any name. Other metrics are one series each, named like the metric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = re.compile(r"(?P<metric>[^{/]+)(?:\{(?P<labels>[^{}]*)\}|/(?P<domain>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Series:
    """A series of a metric: which metric, and which one of its kind."""

    metric: str
    labels: Mapping[str, str]

    @classmethod
    def read(cls, name: str) -> Series:
        """The reverse of :func:`labelled`; a domain is the label ``domain``."""
        match = _NAME.fullmatch(name)
        if match is None:
            return cls(name, {})
        if match["domain"] is not None:
            return cls(match["metric"], {"domain": match["domain"]})
        pairs = (pair.partition("=") for pair in (match["labels"] or "").split(",") if pair)
        return cls(match["metric"], {label: value for label, _, value in pairs})


def labelled(metric: str, **labels: str) -> str:
    """The name of one series of a metric. Values are names of workers, stages and reasons: without commas and braces."""
    return f"{metric}{{{','.join(f'{label}={value}' for label, value in sorted(labels.items()))}}}"
