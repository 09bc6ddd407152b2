"""The PairRM scorer: both orders of every pair of answers, in batches over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from learner.records import ScorerIdentity
from workers.config import PairRMScorer
from workers.scorers.base import Comparison, ScoreResult
from workers.scorers.batching import plan_batches
from workers.scorers.pairrm_model import load_pairrm, pair_logits
from workers.scorers.pairrm_tokens import PairTokenizer, PairTokens
from workers.scorers.text import render_pairrm, strip_thinking
from workers.scorers.weights import weights_digest


class PairRMPreferenceScorer:
    """PairRM on one device: float32 on the CPU, float16 (as llm-blender runs it) on a GPU.

    Args:
        config: which model, and how much it reads.
        device: ``cpu`` or ``cuda``.
        batch_tokens: most tokens of one forward pass, padding included.
    """

    def __init__(self, config: PairRMScorer, *, device: Literal["cpu", "cuda"], batch_tokens: int) -> None:
        model, self._tokenizer, files = load_pairrm(
            config.model, max_source_tokens=config.max_source_tokens, max_total_tokens=config.max_total_tokens
        )
        self._model = model.to(device=device, dtype=torch.float16 if device == "cuda" else torch.float32)
        self._batch_tokens = batch_tokens
        self._strip_thinking = config.strip_thinking
        self._identity = ScorerIdentity(kind=config.kind, name=config.model, version=weights_digest(files))

    @property
    def identity(self) -> ScorerIdentity:
        """The model's name and the SHA-256 of its weight files."""
        return self._identity

    def score(self, comparisons: Sequence[Comparison]) -> list[ScoreResult]:
        """Ordered logits of every comparison, ``K (K - 1)`` pairs each; pairs of equal texts are computed once."""
        return score_pairs(
            self._model,
            self._tokenizer,
            comparisons,
            batch_tokens=self._batch_tokens,
            without_thinking=self._strip_thinking,
        )


def score_pairs(
    model: Any,
    tokenizer: PairTokenizer,
    comparisons: Sequence[Comparison],
    *,
    batch_tokens: int,
    without_thinking: bool = False,
) -> list[ScoreResult]:
    """Score comparisons with a PairRM in evaluation mode."""
    sources, candidates = [], []
    for comparison in comparisons:
        answers = [strip_thinking(answer) for answer in comparison.answers] if without_thinking else comparison.answers
        source, rendered = render_pairrm(comparison.prompt, answers)
        sources.append(source)
        candidates.append(rendered)
    segments = tokenizer.segments(sources, candidates)

    # Answers that read alike make the same pair: (i, j) stands for every pair of its texts.
    pairs: list[PairTokens] = []
    index_of: list[dict[tuple[int, int], int]] = []
    representatives: list[list[int]] = []
    for segment in segments:
        first_seen: dict[tuple[int, ...], int] = {}
        representative = [first_seen.setdefault(tuple(ids), i) for i, ids in enumerate(segment.candidates)]
        indices: dict[tuple[int, int], int] = {}
        for i, left in enumerate(representative):
            for j, right in enumerate(representative):
                if i != j and (left, right) not in indices:
                    indices[left, right] = len(pairs)
                    pairs.append(tokenizer.pair(segment.source, segment.candidates[left], segment.candidates[right]))
        representatives.append(representative)
        index_of.append(indices)

    logits = _logits(model, pairs, tokenizer.pad_id, batch_tokens)
    results = []
    for segment, representative, indices in zip(segments, representatives, index_of, strict=True):
        k = len(representative)
        ordered = np.zeros((k, k), dtype=np.float32)
        for i, left in enumerate(representative):
            for j, right in enumerate(representative):
                if i != j:
                    ordered[i, j] = logits[indices[left, right]]
        results.append(ScoreResult(ordered, segment.truncated_candidates, segment.truncated_source))
    return results


def _logits(
    model: Any, pairs: list[PairTokens], pad_id: int, batch_tokens: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    logits = np.zeros(len(pairs), dtype=np.float32)
    with torch.inference_mode():
        for batch in plan_batches([len(pair.ids) for pair in pairs], batch_tokens):
            logits[batch] = pair_logits(model, [pairs[index] for index in batch], pad_id).cpu().numpy()
    return logits
