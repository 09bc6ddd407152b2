"""Does a sampler run the version that it names? Judged from numbers alone (rule 4).

The learner publishes, with every version, texts on which the versions differ and its own log-probabilities of their
tokens under the version, the one before and the bare base. A sampler measures the same texts. If it runs the version,
its numbers lie at the learner's up to the noise between two implementations; if it runs another, they lie at that
one's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from learner.errors import InputError
from learner.records import CanaryText, VersionManifest

SEPARATION = 3.0
"""Versions can be told apart where they differ by at least this many times the noise.

With noise of at most n on every token, a sampler of the version measures at most n from it and at least 2 n from the
other: it is always at least twice as close. That is what `passed` asks for.
"""

VERSION_ZERO_TOLERANCE = 1e-3
"""Largest mean distance per token, in nats, of a version 0 that equals the bare base (unless the noise is larger)."""


class CanaryOutcome(StrEnum):
    """What the numbers say."""

    PASSED = "passed"
    FAILED = "failed"
    CANNOT_TELL = "cannot_tell"


@dataclass(frozen=True)
class CanaryVerdict:
    """The outcome, and the numbers behind it: sums of absolute differences over all tokens, in nats.

    ``distance_x``: measured against x. ``separation_x``: the version against x. ``noise``: what two implementations may
    differ by.
    """

    outcome: CanaryOutcome
    reason: str
    tokens: int
    noise: float
    distance_current: float
    distance_base: float
    separation_base: float
    distance_previous: float | None = None
    separation_previous: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the version was proved. "Cannot tell" is not."""
        return self.outcome is CanaryOutcome.PASSED

    def as_metrics(self) -> dict[str, float]:
        """The numbers, under stable names."""
        numbers = {
            "canary_distance_current": self.distance_current,
            "canary_distance_previous": self.distance_previous,
            "canary_distance_base": self.distance_base,
            "canary_separation_previous": self.separation_previous,
            "canary_separation_base": self.separation_base,
            "canary_noise": self.noise,
            "canary_tokens": float(self.tokens),
        }
        return {name: number for name, number in numbers.items() if number is not None}


def _distance(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    return math.fsum(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def _previous(texts: Sequence[CanaryText]) -> list[tuple[float, ...]] | None:
    previous = [text.previous for text in texts if text.previous is not None]
    return previous if len(previous) == len(texts) else None


def judge(
    manifest: VersionManifest,
    measured: Sequence[Sequence[float]],
    noise_per_token: float,
    tolerance_per_token: float | None = None,
) -> CanaryVerdict:
    """Whether a sampler's log-probabilities are those of the version, of another, or too close to call.

    `passed` needs the measurement to be at least twice as close to the version as to the previous one and to the bare
    base, where these are `SEPARATION` times the noise away. A version that lies closer to one of them is `cannot_tell`,
    or `failed` where the measurement is off by more than noise explains. Version 0 of a bare model equals the base:
    there the measurement must agree.

    Args:
        manifest: of the version that the sampler names; carries the texts.
        measured: the sampler's log-probabilities, per text one per token from the second on, in nats.
        noise_per_token: how far two implementations may differ on a token, on average (float32: 2e-5, bfloat16: 5e-2).
        tolerance_per_token: agreement asked of a version 0 that equals the base; default `VERSION_ZERO_TOLERANCE`, or
            three times the noise where that is more.

    Raises:
        InputError: the measurement does not fit the texts, or the noise is not above 0.
    """
    texts = manifest.canary
    if not noise_per_token > 0:
        raise InputError(f"noise_per_token: {noise_per_token} must be above 0")
    if [len(values) for values in measured] != [len(text.current) for text in texts]:
        raise InputError(
            f"canary of {manifest.name}: measured {[len(values) for values in measured]} tokens, "
            f"but the texts have {[len(text.current) for text in texts]}; measure every token from the second on"
        )
    current, base, previous = [t.current for t in texts], [t.base for t in texts], _previous(texts)
    tokens = sum(map(len, current))
    noise = noise_per_token * tokens

    def verdict(outcome: CanaryOutcome, reason: str) -> CanaryVerdict:
        return CanaryVerdict(
            outcome=outcome,
            reason=f"{manifest.name}: {reason}",
            tokens=tokens,
            noise=noise,
            distance_current=_distance(measured, current),
            distance_base=_distance(measured, base),
            separation_base=_distance(current, base),
            distance_previous=None if previous is None else _distance(measured, previous),
            separation_previous=None if previous is None else _distance(current, previous),
        )

    numbers = verdict(CanaryOutcome.CANNOT_TELL, "no texts to measure")
    if tokens == 0:
        return numbers
    off = numbers.distance_current
    shown = f"measured {off:.3g} nats from the version over {tokens} tokens"
    if not math.isfinite(off):
        return verdict(CanaryOutcome.FAILED, f"{shown}: not a finite number")

    others = [("the base", numbers.separation_base, numbers.distance_base)]
    if numbers.separation_previous is not None and numbers.distance_previous is not None:
        others.append(("the version before", numbers.separation_previous, numbers.distance_previous))
    elif manifest.version > 0:
        return verdict(CanaryOutcome.CANNOT_TELL, f"{shown}; the version before was not recorded")

    near = [name for name, separation, _ in others if not separation >= SEPARATION * noise]
    if near and manifest.version == 0:
        tolerance = tolerance_per_token or max(VERSION_ZERO_TOLERANCE, SEPARATION * noise_per_token)
        agrees = off <= tolerance * tokens
        outcome = CanaryOutcome.PASSED if agrees else CanaryOutcome.FAILED
        return verdict(outcome, f"{shown}, where {tolerance * tokens:.3g} are allowed because it equals the base")
    if near:
        if off > 2 * noise:
            return verdict(CanaryOutcome.FAILED, f"{shown}, more than the noise of {noise:.3g} explains")
        names = " and ".join(near)
        return verdict(CanaryOutcome.CANNOT_TELL, f"{shown}; too close to {names} for a noise of {noise:.3g}")
    for name, _, distance in others:
        if not off <= distance / 2:
            return verdict(CanaryOutcome.FAILED, f"{shown}, and {distance:.3g} from {name}")
    return verdict(CanaryOutcome.PASSED, f"{shown}, and at least twice as far from the others")
