"""Log-probabilities of answers: exact and autoregressive (rule 14: one interface, so that a bound can take its place).

The float32 tensor of batch x length x vocabulary never exists. Hidden states are projected to logits at answer
positions only, a chunk of tokens at a time; while training each chunk is computed again in the backward pass instead of
being kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from learner.errors import InputError

Text = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its answer. EOS, where there is one, is the answer's last token."""


@dataclass(frozen=True)
class TokenBatch:
    """N texts padded on the right, and where their M answer tokens are.

    Attributes:
        input_ids: ``[N, T]``.
        rows: ``[M]``, the text of each answer token.
        positions: ``[M]``, the position whose hidden state predicts it.
        targets: ``[M]``, its id.
        counts: answer tokens of each text.
    """

    input_ids: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: tuple[int, ...]


def collate(texts: Sequence[Text], device: torch.device) -> TokenBatch:
    """Put texts into one right-padded batch.

    The padding id is 0, whatever the tokenizer says: nothing looks to the right, so padding is never read.

    Raises:
        InputError: a prompt is empty.
    """
    if any(len(prompt) == 0 for prompt, _ in texts):
        raise InputError("a prompt has no tokens; the first answer token would have nothing to be predicted from")
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    rows: list[int] = []
    positions: list[int] = []
    for row, (prompt, answer) in enumerate(texts):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        rows += [row] * len(answer)
        positions += range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    row_ids, where = torch.tensor(rows, dtype=torch.long), torch.tensor(positions, dtype=torch.long)
    targets = ids[row_ids, where + 1]
    counts = tuple(len(answer) for _, answer in texts)
    return TokenBatch(ids.to(device), row_ids.to(device), where.to(device), targets.to(device), counts)


class OutputHead:
    """The model's way from hidden states to logits: the output layer, and what some families do after it."""

    def __init__(self, model: PreTrainedModel) -> None:
        layer = model.get_output_embeddings()
        if layer is None:
            raise InputError(f"policy.model: {type(model).__name__} has no output layer; use a causal language model")
        config = model.config.get_text_config()
        self.weight: Tensor = layer.weight
        self.bias: Tensor | None = getattr(layer, "bias", None)
        multiplier, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        self.scale = float(multiplier or 1.0) / float(divisor or 1.0)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[M, H]`` to float32 (float64 where the model is) logits ``[M, V]``."""
        logits = functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if logits.dtype == torch.float64 else logits.float()

    def token_logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """``[M]``: log-probability of each target, in nats."""
        logits = self.logits(hidden)
        return logits.gather(1, targets[:, None]).squeeze(1) - torch.logsumexp(logits, dim=1)


class AutoregressiveLikelihood:
    """Exact log-probabilities under a causal language model, adapters included as they stand at the call."""

    def __init__(self, model: PreTrainedModel, chunk_tokens: int) -> None:
        """Check on a short text that hidden states times output layer are the model's logits, and refuse it if not."""
        self.model = model
        self.backbone = model.get_decoder() or model.base_model
        self.head = OutputHead(model)
        self.chunk_tokens = chunk_tokens
        self._check()

    @torch.no_grad()
    def _check(self) -> None:
        size = self.head.weight.shape[0]
        ids = [(7 * i + 3) % size for i in range(12)]
        batch = collate([(ids[:1], ids[1:])], self.head.weight.device)
        was_training = self.model.training
        self.model.eval()
        logits = self.model(input_ids=batch.input_ids, use_cache=False).logits[0, :-1].float()
        full = torch.log_softmax(logits, dim=-1).gather(1, batch.targets[:, None]).squeeze(1)
        gap = float((self.token_logps(batch).float() - full).abs().max())
        self.model.train(was_training)
        allowed = 1e-3 if self.head.weight.dtype in (torch.float32, torch.float64) else 0.25
        if not gap <= allowed:
            raise InputError(
                f"policy.model: {type(self.model).__name__} makes its logits in a way that is not supported "
                f"(log-probabilities differ by {gap:.3g} nats); use another family"
            )

    def hidden(self, batch: TokenBatch) -> Tensor:
        """``[M, H]``: the hidden state that predicts each answer token."""
        states: Tensor = self.backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return states[batch.rows, batch.positions]

    def token_logps(self, batch: TokenBatch) -> Tensor:
        """Log-probability of every answer token, ``[M]`` in nats, in the batch's order. Differentiable."""
        return self._in_chunks(self.head.token_logps, self.hidden(batch), batch.targets)[0]

    def sequence_logps(self, batch: TokenBatch) -> Tensor:
        """Log-probability of every answer, ``[N]`` in nats: the sum over its tokens."""
        return per_answer(self.token_logps(batch), batch, "sum")

    def measure(
        self, batch: TokenBatch, fields: frozenset[str] = frozenset(), reference_hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Values of every answer, ``[N]``, by the names that :class:`~learner.objectives.PreferenceBatch` has for them.

        Always ``policy_logps``; the others only where ``fields`` names them, since they read the whole vocabulary:
        ``token_kl`` and ``token_kl_products`` (against ``reference_hidden``, ``[M, H]``), ``squared_probability_logs``
        and ``mean_entropy``, which is in units of log V. The whole vocabulary's logits exist for ``chunk_tokens`` tokens
        at a time, forward and backward.
        """
        wanted = [name for name in TOKEN_MEASURES if name in fields]
        if not wanted:
            return {"policy_logps": self.sequence_logps(batch)}

        def chunk(hidden: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
            values = token_measures(self.head, hidden, targets, reference if reference_hidden is not None else None)
            return tuple(values[name]() for name in ("policy_logps", *wanted))

        hidden = self.hidden(batch)
        reference = hidden.detach() if reference_hidden is None else reference_hidden
        parts = self._in_chunks(chunk, hidden, batch.targets, reference)
        return {
            name: per_answer(part, batch, TOKEN_MEASURES.get(name, "sum"))
            for name, part in zip(("policy_logps", *wanted), parts, strict=True)
        }

    def _in_chunks(self, function: Callable[..., Tensor | tuple[Tensor, ...]], *arguments: Tensor) -> list[Tensor]:
        """What ``function`` makes of ``[M, ...]`` arguments, chunk by chunk, computed again in the backward pass."""
        chunks = zip(*(torch.split(argument, self.chunk_tokens) for argument in arguments), strict=True)
        results: list[tuple[Tensor, ...]] = []
        for chunk in chunks:
            if torch.is_grad_enabled():
                found = checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
            else:
                found = function(*chunk)
            results.append(found if isinstance(found, tuple) else (found,))
        return [torch.cat(parts) for parts in zip(*results, strict=True)]


TOKEN_MEASURES: dict[str, Literal["sum", "mean"]] = {
    "token_kl": "sum",
    "token_kl_products": "sum",
    "squared_probability_logs": "mean",
    "mean_entropy": "mean",
}
"""Values that read the whole vocabulary, and whether an answer's is the sum or the mean over its tokens."""


def token_measures(
    head: OutputHead, hidden: Tensor, targets: Tensor, reference_hidden: Tensor | None
) -> dict[str, Callable[[], Tensor]]:
    """How each measure of ``[M]`` tokens is computed, from hidden states ``[M, H]`` of policy and reference."""
    log_probs = torch.log_softmax(head.logits(hidden), dim=1)
    logps = log_probs.gather(1, targets[:, None]).squeeze(1)

    def reference_log_probs() -> Tensor:
        assert reference_hidden is not None
        with torch.no_grad():
            return torch.log_softmax(head.logits(reference_hidden), dim=1)

    def token_kl() -> Tensor:
        reference = reference_log_probs()
        return (reference.exp() * (reference - log_probs)).sum(dim=1)

    def token_kl_products() -> Tensor:
        reference = reference_log_probs().gather(1, targets[:, None]).squeeze(1)
        return (logps.detach() - reference) * logps

    def squared_probability_logs() -> Tensor:
        return (logps - torch.logsumexp(2 * log_probs, dim=1)).detach()

    def mean_entropy() -> Tensor:
        entropy: Tensor = -(log_probs.exp() * log_probs).sum(dim=1) / math.log(log_probs.shape[1])
        return entropy.detach()

    return {
        "policy_logps": lambda: logps,
        "token_kl": token_kl,
        "token_kl_products": token_kl_products,
        "squared_probability_logs": squared_probability_logs,
        "mean_entropy": mean_entropy,
    }


def per_answer(values: Tensor, batch: TokenBatch, reduction: Literal["sum", "mean"]) -> Tensor:
    """``[M]`` token values as ``[N]`` sums or means over each answer's tokens."""
    parts = torch.split(values, list(batch.counts))
    return torch.stack([part.sum() if reduction == "sum" else part.sum() / max(1, len(part)) for part in parts])
