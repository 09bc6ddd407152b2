"""Judges pairs of answers: one win rate over all of them, and one for each domain of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner import evaluation
from workers.messages import DomainWinRate, JudgedWinRate
from workers.scorers.base import Comparison, PreferenceScorer


@dataclass(frozen=True)
class Judgement:
    """Win rates of the first answers against the second: over all comparisons, and by the prompts' domain."""

    overall: JudgedWinRate
    domains: dict[str, JudgedWinRate]


def judge(
    scorer: PreferenceScorer, comparisons: Sequence[Comparison], tie_margin: float, temperature: float
) -> Judgement:
    """Win rates of each comparison's first answer against its second, without position bias.

    Args:
        scorer: sees each comparison once.
        comparisons: of two answers each.
        tie_margin: ``|P(a beats b) - 1/2|`` up to which a comparison is a tie.
        temperature: divides the scorer's logits.

    Raises:
        InputError: there are no comparisons, or a logit is not a number.
    """
    results = scorer.score(comparisons)
    logits = [(float(r.ordered_logits[0, 1]) - float(r.ordered_logits[1, 0])) / 2 for r in results]
    domains = [comparison.prompt.domain for comparison in comparisons]
    rates = evaluation.win_rate_by_domain(logits, domains, tie_margin, temperature)
    return Judgement(
        _judged(evaluation.win_rate(logits, tie_margin, temperature)),
        {domain: _judged(rate) for domain, rate in rates.items()},
    )


def by_domain(judged: Judgement, gold: Judgement | None) -> dict[str, DomainWinRate]:
    """The win rates of each domain by the scorer and, where there is one, by the gold judge, who saw the same prompts."""
    return {
        domain: DomainWinRate(judge=rate, gold=None if gold is None else gold.domains[domain])
        for domain, rate in judged.domains.items()
    }


def _judged(rate: evaluation.WinRate) -> JudgedWinRate:
    return JudgedWinRate(mean=rate.mean, low=rate.low, high=rate.high, tie_rate=rate.ties, count=rate.count)
