"""From scored groups to what a step works on: the answers that are trained on, as token ids, with their preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    """What is learned from one group: its R answers, best first or as given, and the records that are made of them.

    ``first`` is the number of the group's first record in the optimizer batch.
    """

    group_id: str
    texts: tuple[Text, ...]
    answers: tuple[Answer, ...]
    selection: Selection
    first: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text, prompt and answer."""
        return [len(prompt) + len(answer) for prompt, answer in self.texts]


def usable_groups(groups: Sequence[ScoredGroup], config: TrainerConfig) -> list[ScoredGroup]:
    """The groups that have something to learn from."""
    return [
        group for group in groups if skip_reason(group, config.pairing, config.truncated, config.temperature) is None
    ]


def make_examples(
    groups: Sequence[ScoredGroup], config: TrainerConfig, log_ratios: Sequence[Sequence[float]] | None = None
) -> list[Example]:
    """Select answers from usable groups and make records of them.

    Args:
        groups: see :func:`usable_groups`.
        config: what is trained, and how answers are selected.
        log_ratios: per group, of each of its answers, where the pairing rule draws by them.

    Raises:
        InputError: an answer that is trained on has no tokens.
    """
    examples: list[Example] = []
    first = 0
    for number, group in enumerate(groups):
        selection = select_answers(
            group,
            config.objective,
            config.pairing,
            config.truncated,
            config.temperature,
            None if log_ratios is None else log_ratios[number],
        )
        answers = tuple(group.answers[i] for i in selection.indices)
        if not all(answer.token_ids for answer in answers):
            raise InputError(f"group {group.group_id}: an answer has no tokens; every answer holds at least its EOS")
        texts = tuple((group.prompt_token_ids, answer.token_ids) for answer in answers)
        examples.append(Example(group.group_id, texts, answers, selection, first))
        first += len(selection.records)
    return examples


def preference_batch(
    examples: Sequence[Example],
    policy: Mapping[str, Tensor],
    reference: Sequence[Mapping[str, Sequence[float]]] | None,
    opponent: Literal["slow"] | int | None = None,
) -> PreferenceBatch:
    """Lay the records of examples out as B x R; those with fewer answers than the largest are masked at the end.

    Args:
        examples: whose records they are.
        policy: values of all their answers, in order, ``[sum of R]`` each, by the batch's names for them.
        reference: per example the reference's values, one for each answer; None where the objective reads none.
        opponent: whose answers are the opponent's, where there is one: the slow adapter's, or those of a version.
    """
    logps = policy["policy_logps"]
    widest = max(len(record) for example in examples for record in example.selection.records)
    places: list[list[int]] = []
    offset = 0
    for example in examples:
        places += [[offset + place for place in record] for record in example.selection.records]
        offset += len(example.texts)
    mask = torch.tensor([[True] * len(row) + [False] * (widest - len(row)) for row in places])
    index = torch.tensor([row + [0] * (widest - len(row)) for row in places])
    on_device, present = index.to(logps.device), mask.to(logps.device)

    def laid_out(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[index].to(logps.device, logps.dtype)

    def of_answers(name: str) -> Tensor:
        return laid_out([value for example in examples for value in getattr(example.selection, name).tolist()])

    known = {} if reference is None else {name: [v for row in reference for v in row[name]] for name in reference[0]}
    return PreferenceBatch(
        mask=present,
        lengths=laid_out([float(len(answer)) for example in examples for _, answer in example.texts]),
        win_probabilities=of_answers("win_probabilities"),
        scores=of_answers("scores"),
        pair_logits=_pair_logits(examples, widest).to(logps.device, logps.dtype),
        positions=torch.tensor(
            [example.first + number for example in examples for number in range(len(example.selection.records))]
        ),
        from_opponent=None
        if opponent is None
        else laid_out(
            [float(opponent in (a.version, a.module)) for example in examples for a in example.answers]
        ).bool(),
        **{name: values[on_device] for name, values in policy.items()},
        **{name: laid_out(values) for name, values in known.items()},
    )


def _pair_logits(examples: Sequence[Example], widest: int) -> Tensor:
    """``[B, R, R]``: each record's ordered logits, 0 where an answer is missing."""
    rows = []
    for example in examples:
        for record in example.selection.records:
            logits = torch.zeros(widest, widest, dtype=torch.float64)
            chosen = list(record)
            logits[: len(record), : len(record)] = torch.as_tensor(example.selection.pair_logits[chosen][:, chosen])
            rows.append(logits)
    return torch.stack(rows)
