"""The order in which a job takes its prompts: one after another, reshuffled each time they begin again. Pure."""

from __future__ import annotations

from functools import lru_cache

from learner.records import Prompt
from learner.seeds import derive_seed
from services.jobs.prepare import PreparedPrompts, shuffled


class PromptStream:
    """Prompts by position: the n-th ticket of a job takes the n-th prompt, so that rounds take disjoint slices.

    Args:
        prepared: the prompts, rendered.
        shuffle: whether the order is shuffled.
        seed: the job's.
        reuse: begin again, in another order, when they run out.
    """

    def __init__(self, prepared: PreparedPrompts, *, shuffle: bool, seed: int, reuse: bool) -> None:
        self._prepared, self._shuffle, self._seed, self._reuse = prepared, shuffle, seed, reuse
        self._order = lru_cache(maxsize=2)(self._make_order)

    def at(self, position: int) -> tuple[Prompt, tuple[int, ...]]:
        """The prompt at a position, and its token ids.

        Raises:
            IndexError: the position lies beyond the prompts, and they do not begin again.
        """
        pass_number, place = divmod(position, len(self._prepared))
        if pass_number and not self._reuse:
            raise IndexError(f"position {position} lies beyond the {len(self._prepared)} prompts")
        index = self._order(pass_number)[place]
        return self._prepared.prompts[index], self._prepared.token_ids[index]

    def left(self, position: int) -> int | None:
        """Prompts from a position on; None where they never run out."""
        return None if self._reuse else max(0, len(self._prepared) - position)

    def _make_order(self, pass_number: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self._prepared)))
        return shuffled(
            [prompt.id for prompt in self._prepared.prompts], derive_seed(self._seed, "prompts", pass_number)
        )
