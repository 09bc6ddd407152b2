"""Chooses the canary's texts: those on which a version differs most from the one before (rule 4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from learner.records import CanaryText

MAX_TEXTS = 8
MAX_TOKENS = 256
MAX_CANDIDATES = 24

LogProbabilities = Sequence[Sequence[float]]


class CanaryCandidates:
    """The texts of the last batches, without doubles: prompt and answer, at most `MAX_TOKENS` each."""

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self._texts: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.add(texts)

    def add(self, texts: Iterable[Sequence[int]]) -> None:
        """Add texts; the oldest give way."""
        for text in texts:
            cut = tuple(text[:MAX_TOKENS])
            if len(cut) >= 2:
                self._texts[cut] = None
                self._texts.move_to_end(cut)
        while len(self._texts) > MAX_CANDIDATES:
            self._texts.popitem(last=False)

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """From the oldest to the newest."""
        return list(self._texts)


def choose_canary(
    texts: Sequence[tuple[int, ...]],
    current: LogProbabilities,
    base: LogProbabilities,
    previous: LogProbabilities | None,
) -> tuple[CanaryText, ...]:
    """Up to `MAX_TEXTS` texts with the largest sum over tokens of |current - previous| (version 0: |current - base|).

    Args:
        texts: token ids.
        current: per text, the version's log-probabilities from the second token on, in nats.
        base: the bare base's.
        previous: the previous version's; None for version 0.
    """
    other = base if previous is None else previous
    moved = [sum(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(current, other, strict=True)]
    chosen = sorted(range(len(texts)), key=lambda i: (-moved[i], i))[:MAX_TEXTS]
    return tuple(
        CanaryText(
            token_ids=texts[i],
            current=tuple(current[i]),
            base=tuple(base[i]),
            previous=None if previous is None else tuple(previous[i]),
        )
        for i in chosen
    )
