"""A sequence-classification reward model as a preference scorer, by Bradley-Terry: the logit is the difference of two rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from learner.errors import InputError
from learner.records import Prompt, ScorerIdentity
from workers.config import RewardModelScorer
from workers.scorers.base import Comparison, ScoreResult, logits_of_rewards
from workers.scorers.batching import plan_batches
from workers.scorers.text import strip_thinking
from workers.scorers.weights import model_folder, weight_files, weights_digest

_FIELD = "scorer.model.model"


class RewardModelPreferenceScorer:
    """Rewards each answer by itself: float32 on the CPU, bfloat16 on a GPU.

    With a chat template the conversation is rendered by it; without one, prompt and answer are given as a pair of texts, which is how
    classifiers of two sentences were trained.
    """

    def __init__(self, config: RewardModelScorer, *, device: Literal["cpu", "cuda"], batch_tokens: int) -> None:
        folder = model_folder(config.model, field=_FIELD)
        try:
            outputs = AutoConfig.from_pretrained(str(folder)).num_labels
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise InputError(f"{_FIELD}: {config.model!r} cannot be loaded ({str(error).splitlines()[0]})") from error
        if outputs != 1:
            raise InputError(
                f"{_FIELD}: {config.model!r} has {outputs} outputs; a reward model has one (num_labels: 1 in its config.json)"
            )
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=dtype, output_loading_info=True, weights_only=True
        )
        if loaded["missing_keys"]:
            # The library would fill them with random numbers.
            raise InputError(
                f"{_FIELD}: the weights of {config.model!r} lack {', '.join(sorted(loaded['missing_keys'])[:3])}; it is not a "
                "trained sequence classifier"
            )
        self._pad_id = self._tokenizer.pad_token_id
        if self._pad_id is None:
            self._pad_id = self._tokenizer.eos_token_id
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._pad_id
        if self._pad_id is None or model.config.pad_token_id != self._pad_id:
            # Decoders read the reward at the last token before the padding, which they find by its id.
            raise InputError(f"{_FIELD}: the tokenizer and the model of {config.model!r} disagree on the padding token")
        self._model = model.to(device).eval()
        self._limit = config.max_total_tokens
        self._batch_tokens = batch_tokens
        self._strip_thinking = config.strip_thinking
        self._identity = ScorerIdentity(
            kind=config.kind, name=config.model, version=weights_digest(weight_files(folder, field=_FIELD))
        )

    @property
    def identity(self) -> ScorerIdentity:
        """The model's name and the SHA-256 of its weight files."""
        return self._identity

    def score(self, comparisons: Sequence[Comparison]) -> list[ScoreResult]:
        """Logits of every comparison; each answer is read once."""
        encoded = [
            self._encode(comparison.prompt, strip_thinking(answer) if self._strip_thinking else answer)
            for comparison in comparisons
            for answer in comparison.answers
        ]
        rewards = self._rewards([ids[: self._limit] for ids in encoded])
        results, start = [], 0
        for comparison in comparisons:
            end = start + len(comparison.answers)
            cut = sum(len(ids) > self._limit for ids in encoded[start:end])
            results.append(ScoreResult(logits_of_rewards(rewards[start:end]), truncated_candidates=cut))
            start = end
        return results

    def _encode(self, prompt: Prompt, answer: str) -> list[int]:
        if self._tokenizer.chat_template:
            messages = [{"role": message.role, "content": message.text} for message in prompt.messages]
            messages.append({"role": "assistant", "content": answer})
            # The template writes special tokens itself; adding them again would double BOS.
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
            ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            asked = "\n".join(message.text for message in prompt.messages)
            ids = self._tokenizer(asked, answer, verbose=False)["input_ids"]
        return ids

    def _rewards(self, sequences: list[list[int]]) -> list[float]:
        rewards = [0.0] * len(sequences)
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            for batch in plan_batches([len(ids) for ids in sequences], self._batch_tokens):
                longest = max(len(sequences[index]) for index in batch)
                ids = torch.full((len(batch), longest), self._pad_id, dtype=torch.long)
                mask = torch.zeros((len(batch), longest), dtype=torch.long)
                for row, index in enumerate(batch):
                    ids[row, : len(sequences[index])] = torch.tensor(sequences[index])
                    mask[row, : len(sequences[index])] = 1
                outputs = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
                for index, reward in zip(batch, outputs[:, 0].float().tolist(), strict=True):
                    rewards[index] = reward
        return rewards
