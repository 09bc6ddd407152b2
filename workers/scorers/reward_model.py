"""A sequence-classification reward model as a preference scorer, by Bradley-Terry: the logit is the difference of two rewards."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
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

POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
"""What models call their learned absolute positions."""

_FIELD = "scorer.model.model"


@dataclass(frozen=True)
class _Text:
    """What the model reads: tokens, and for each which of the two texts it belongs to."""

    ids: list[int]
    types: list[int]

    def cut(self, length: int) -> _Text:
        return _Text(self.ids[:length], self.types[:length])


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
        positions = _absolute_positions(model)
        if positions is not None and config.max_total_tokens > positions:
            raise InputError(
                f"{_FIELD}: {config.model!r} reads at most {positions} tokens; set scorer.model.max_total_tokens to that or less, not "
                f"{config.max_total_tokens}"
            )
        # which of two texts a token belongs to, for classifiers of pairs that have learned to look
        self._typed = "token_type_ids" in inspect.signature(model.forward).parameters
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
        rewards = self._rewards([text.cut(self._limit) for text in encoded])
        results, start = [], 0
        for comparison in comparisons:
            end = start + len(comparison.answers)
            cut = sum(len(text.ids) > self._limit for text in encoded[start:end])
            results.append(ScoreResult(logits_of_rewards(rewards[start:end]), truncated_candidates=cut))
            start = end
        return results

    def _encode(self, prompt: Prompt, answer: str) -> _Text:
        if self._tokenizer.chat_template:
            messages = [{"role": message.role, "content": message.text} for message in prompt.messages]
            messages.append({"role": "assistant", "content": answer})
            # The template writes special tokens itself; adding them again would double BOS.
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
            read = self._tokenizer(text, add_special_tokens=False, verbose=False)
        else:
            asked = "\n".join(message.text for message in prompt.messages)
            read = self._tokenizer(asked, answer, verbose=False)
        ids: list[int] = read["input_ids"]
        return _Text(ids, read.get("token_type_ids") or [0] * len(ids))

    def _rewards(self, texts: list[_Text]) -> list[float]:
        rewards = [0.0] * len(texts)
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            for batch in plan_batches([len(text.ids) for text in texts], self._batch_tokens):
                longest = max(len(texts[index].ids) for index in batch)
                ids = torch.full((len(batch), longest), self._pad_id, dtype=torch.long)
                mask, types = (torch.zeros((len(batch), longest), dtype=torch.long) for _ in range(2))
                for row, index in enumerate(batch):
                    length = len(texts[index].ids)
                    ids[row, :length] = torch.tensor(texts[index].ids)
                    types[row, :length] = torch.tensor(texts[index].types)
                    mask[row, :length] = 1
                typed = {"token_type_ids": types.to(device)} if self._typed else {}
                outputs = self._model(input_ids=ids.to(device), attention_mask=mask.to(device), **typed).logits
                for index, reward in zip(batch, outputs[:, 0].float().tolist(), strict=True):
                    rewards[index] = reward
        return rewards


def _absolute_positions(model: torch.nn.Module) -> int | None:
    """Tokens that a model with learned absolute positions has positions for; None for one without."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            # RoBERTa and its kin count from behind the padding's own place
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None
