"""Judges pairs of answers: win rates over all of them, plain and for equal lengths, and one for each domain of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner import evaluation
from workers.messages import DomainWinRate, EqualLengthWinRate, JudgedWinRate
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
    logits = order_averaged_logits(scorer, comparisons)
    domains = [comparison.prompt.domain for comparison in comparisons]
    rates = evaluation.win_rate_by_domain(logits, domains, tie_margin, temperature)
    plain = evaluation.win_rate(logits, tie_margin, temperature)
    lengths = [len(first) - len(second) for first, second in (comparison.answers for comparison in comparisons)]
    equal = evaluation.length_controlled_win_rate(evaluation.preferences_of(logits, temperature), lengths)
    return Judgement(
        _judged(plain, EqualLengthWinRate(mean=equal.mean, low=equal.low, high=equal.high)),
        {domain: _judged(rate) for domain, rate in rates.items()},
    )


def order_averaged_logits(scorer: PreferenceScorer, comparisons: Sequence[Comparison]) -> list[float]:
    """The scorer's logit that each comparison's first answer beats its second, averaged over both orders."""
    results = scorer.score(comparisons)
    return [(float(r.ordered_logits[0, 1]) - float(r.ordered_logits[1, 0])) / 2 for r in results]


def by_domain(judged: Judgement, gold: Judgement | None) -> dict[str, DomainWinRate]:
    """The win rates of each domain by the scorer and, where there is one, by the gold judge, who saw the same prompts."""
    return {
        domain: DomainWinRate(judge=rate, gold=None if gold is None else gold.domains[domain])
        for domain, rate in judged.domains.items()
    }


def _judged(rate: evaluation.WinRate, equal_length: EqualLengthWinRate | None = None) -> JudgedWinRate:
    return JudgedWinRate(
        mean=rate.mean,
        low=rate.low,
        high=rate.high,
        tie_rate=rate.ties,
        count=rate.count,
        length_controlled=equal_length,
    )
