"""PairRM's input: one prompt and two answers as a sequence of tokens.

    [CLS] <|source|> prompt [SEP]  [CLS] <|candidate1|> first answer [SEP]  [CLS] <|candidate2|> second answer [SEP]

Each segment is tokenised by itself, special tokens included, as llm-blender does; so a text is tokenised once and used in every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learner.errors import InputError
from workers.scorers.text import replace_literals

SOURCE, CANDIDATE1, CANDIDATE2, CANDIDATE = "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"
PREFIXES = (SOURCE, CANDIDATE1, CANDIDATE2, CANDIDATE)
"""In llm-blender's order: it fixes the ids that tokens get when they are added."""


@dataclass(frozen=True)
class PairTokens:
    """A pair as the model reads it. The three numbers are the positions of the prefix tokens, whose states the head reads."""

    ids: list[int]
    source: int
    candidate1: int
    candidate2: int


@dataclass(frozen=True)
class Segments:
    """A prompt and its answers in tokens, cut to fit. Answers begin with the prefix of the first candidate."""

    source: list[int]
    candidates: list[list[int]]
    truncated_source: bool
    truncated_candidates: int


class PairTokenizer:
    """Turns texts into PairRM's segments, and segments into pairs.

    Args:
        tokenizer: a transformers tokenizer that puts [CLS] and [SEP] round a text. Missing prefix tokens are added to it.
        max_source_tokens: the prompt's segment is cut to this length.
        max_total_tokens: length of a pair; each answer gets ``(max_total_tokens - len(source)) // 2``, for each prompt by itself.
    """

    def __init__(self, tokenizer: Any, max_source_tokens: int, max_total_tokens: int) -> None:
        if max_total_tokens < max_source_tokens + 2 * _LEAST_CANDIDATE:
            raise InputError(
                f"max_total_tokens: {max_total_tokens} leaves no room for answers beside max_source_tokens: {max_source_tokens}; "
                f"it must be at least {max_source_tokens + 2 * _LEAST_CANDIDATE}"
            )
        tokenizer.add_tokens(list(PREFIXES))
        self.tokenizer = tokenizer
        self.source_id, self.candidate1_id, self.candidate2_id, self.candidate_id = (
            int(tokenizer.convert_tokens_to_ids(prefix)) for prefix in PREFIXES
        )
        self.pad_id = int(tokenizer.pad_token_id)
        self._max_source, self._max_total = max_source_tokens, max_total_tokens
        self._literals = sorted({*tokenizer.all_special_tokens, *PREFIXES}, key=lambda text: (-len(text), text))
        probe = self._encode(SOURCE, ["a"])[0]
        if probe[0] != tokenizer.cls_token_id or probe[1] != self.source_id or probe[-1] != tokenizer.sep_token_id:
            raise InputError(
                f"the scorer's tokenizer ({type(tokenizer).__name__}) does not put [CLS] and [SEP] round a text, as PairRM's must"
            )

    def segments(self, sources: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[Segments]:
        """Tokenise prompts and their answers, each text once, and cut the right end of what is too long.

        Args:
            sources: one text for each prompt.
            candidates: for each prompt its answers.
        """
        source_ids = self._encode(SOURCE, sources)
        flat = iter(self._encode(CANDIDATE1, [text for answers in candidates for text in answers]))
        result = []
        for ids, answers in zip(source_ids, candidates, strict=True):
            source = _cut(ids, self._max_source)
            limit = (self._max_total - len(source)) // 2
            whole = [next(flat) for _ in answers]
            result.append(
                Segments(
                    source=source,
                    candidates=[_cut(candidate, limit) for candidate in whole],
                    truncated_source=len(ids) > self._max_source,
                    truncated_candidates=sum(len(candidate) > limit for candidate in whole),
                )
            )
        return result

    def pair(self, source: list[int], first: list[int], second: list[int]) -> PairTokens:
        """One pair in the order given."""
        start1, start2 = len(source), len(source) + len(first)
        ids = source + first + second
        # Segments begin [CLS] prefix; the second answer's prefix is swapped here.
        ids[start2 + 1] = self.candidate2_id
        return PairTokens(ids=ids, source=1, candidate1=start1 + 1, candidate2=start2 + 1)

    def _encode(self, prefix: str, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        cleaned = [prefix + replace_literals(text, self._literals) for text in texts]
        ids: list[list[int]] = self.tokenizer(cleaned, add_special_tokens=True, truncation=False, verbose=False)[
            "input_ids"
        ]
        return ids


_LEAST_CANDIDATE = 4
"""[CLS], prefix, one token of text, [SEP]."""


def _cut(ids: list[int], limit: int) -> list[int]:
    """Cut the right end, keep the closing [SEP]: what a tokenizer's own truncation does."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
