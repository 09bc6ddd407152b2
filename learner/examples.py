"""From scored groups to what a step works on: the answers that are trained on, as token ids, with their preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import TrainerConfig
from learner.errors import InputError
from learner.likelihood import Text
from learner.objectives.batch import PreferenceBatch
from learner.pairing import Selection, select_answers, skip_reason
from learner.records import Answer, ScoredGroup


@dataclass(frozen=True)
class Example:
    """The R answers of one group that are trained on, best first."""

    group_id: str
    texts: tuple[Text, ...]
    answers: tuple[Answer, ...]
    selection: Selection

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text, prompt and answer."""
        return [len(prompt) + len(answer) for prompt, answer in self.texts]


def make_examples(groups: Sequence[ScoredGroup], config: TrainerConfig) -> list[Example]:
    """Select answers from the groups that have something to learn from; the others are left out.

    Raises:
        InputError: an answer that is trained on has no tokens.
    """
    examples = []
    for group in groups:
        if skip_reason(group, config.pairing, config.truncated, config.temperature) is not None:
            continue
        selection = select_answers(group, config.objective, config.pairing, config.truncated, config.temperature)
        answers = tuple(group.answers[i] for i in selection.indices)
        if not all(answer.token_ids for answer in answers):
            raise InputError(f"group {group.group_id}: an answer has no tokens; every answer holds at least its EOS")
        texts = tuple((group.prompt_token_ids, answer.token_ids) for answer in answers)
        examples.append(Example(group.group_id, texts, answers, selection))
    return examples


def preference_batch(
    examples: Sequence[Example], policy_logps: Tensor, reference_logps: Sequence[Sequence[float]] | None
) -> PreferenceBatch:
    """Lay examples out as B x R; examples with fewer answers than the largest are masked at the end.

    Args:
        examples: B of them.
        policy_logps: log-probabilities of all their answers, in order, ``[sum of R]``.
        reference_logps: per example, one per answer; None where the objective reads no reference.
    """
    widest = max(len(example.texts) for example in examples)
    counts = [len(example.texts) for example in examples]
    device = policy_logps.device

    def padded(rows: Sequence[Sequence[float]]) -> Tensor:
        values = torch.zeros(len(rows), widest, dtype=torch.float64)
        for i, row in enumerate(rows):
            values[i, : len(row)] = torch.as_tensor(row, dtype=torch.float64)
        return values.to(device, policy_logps.dtype)

    pair_logits = torch.zeros(len(examples), widest, widest, dtype=torch.float64)
    for i, (example, count) in enumerate(zip(examples, counts, strict=True)):
        pair_logits[i, :count, :count] = torch.as_tensor(example.selection.pair_logits)
    mask = torch.arange(widest) < torch.tensor(counts)[:, None]
    return PreferenceBatch(
        policy_logps=torch.nn.utils.rnn.pad_sequence(list(torch.split(policy_logps, counts)), batch_first=True),
        mask=mask.to(device),
        reference_logps=None if reference_logps is None else padded(reference_logps),
        lengths=padded([[float(len(answer)) for _, answer in example.texts] for example in examples]),
        win_probabilities=padded([example.selection.win_probabilities.tolist() for example in examples]),
        pair_logits=pair_logits.to(device, policy_logps.dtype),
        scores=padded([example.selection.scores.tolist() for example in examples]),
    )
