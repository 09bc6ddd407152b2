"""The batch that every objective reads: B prompts with R answers each, in one layout for all kinds."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from learner.errors import InputError


@dataclass(frozen=True)
class PreferenceBatch:
    """B prompts x R answers, the best answer first (a pair is R = 2, chosen and rejected).

    Fields are ``[B, R]`` unless said otherwise. Gradients flow to ``policy_logps`` and to what is made from it
    (``token_kl``, ``token_kl_products``). A missing answer has ``mask`` False; whatever stands in its places is never
    read, and no gradient flows to it.
    """

    policy_logps: Tensor
    """Log-probability of the answer under the policy, summed over its tokens, in nats."""
    mask: Tensor | None = None
    """Bool: the answer is there. None: all are."""
    reference_logps: Tensor | None = None
    """The same under the reference."""
    lengths: Tensor | None = None
    """Tokens of the answer."""
    win_probabilities: Tensor | None = None
    """Probability to beat a random one of all K answers, also of those that were not selected."""
    pair_logits: Tensor | None = None
    """``[B, R, R]``: ordered logits among the answers kept: (i, j) is the logit that i beats j when shown first."""
    scores: Tensor | None = None
    """The scorer's score of the answer."""
    token_kl: Tensor | None = None
    """KL(reference ‖ policy) per position, summed over the answer's tokens, in nats."""
    mean_entropy: Tensor | None = None
    """The reference's mean entropy over the answer's tokens, in units of log V."""
    other_logps: Tensor | None = None
    """Log-probability under the other module (fast or slow)."""
    squared_probability_logs: Tensor | None = None
    """Mean over the answer's tokens of ``log p_t - log sum_v p_v^2`` under the policy."""
    token_kl_products: Tensor | None = None
    """Sum over the answer's tokens of the detached log-ratio to the reference times the policy's log-probability."""
    from_opponent: Tensor | None = None
    """Bool: the opponent wrote the answer, not the policy."""
    positions: Tensor | None = None
    """``[B]`` long: the example's place among the usable ones of the whole optimizer batch. None: not known."""

    def __post_init__(self) -> None:
        if self.policy_logps.dim() != 2:
            raise InputError(f"policy_logps must be [B, R], not of shape {tuple(self.policy_logps.shape)}")
        b, r = self.policy_logps.shape
        for field in fields(self):
            value = getattr(self, field.name)
            shape = {"pair_logits": (b, r, r), "positions": (b,)}.get(field.name, (b, r))
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"{field.name} must be of shape {shape}, not {tuple(value.shape)}")

    @property
    def present(self) -> Tensor:
        """``[B, R]`` bool: which answers are there."""
        if self.mask is None:
            return torch.ones_like(self.policy_logps, dtype=torch.bool)
        return self.mask.bool()

    def numbered(self, usable: Tensor) -> PreferenceBatch:
        """The same batch, taken as a whole optimizer batch whose ``usable`` examples (``[B]`` bool) are counted from 0."""
        return replace(self, positions=usable.long().cumsum(0) - 1)

    def read(self, name: str, fill: float = 0.0) -> Tensor:
        """A field in the policy's dtype, detached unless it is the policy's own, with missing answers filled.

        Raises:
            InputError: the batch does not carry it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise InputError(f"the objective reads {name}, which the batch does not carry")
        value = value.to(device=self.policy_logps.device, dtype=self.policy_logps.dtype)
        if name not in ("policy_logps", "token_kl", "token_kl_products"):
            value = value.detach()
        present = self.present
        if value.dim() == 3:
            present = present[:, :, None] & present[:, None, :]
        return torch.where(present, value, torch.full_like(value, fill))

    @classmethod
    def from_pairs(
        cls,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
        chosen_win_probability: Tensor | None = None,
        rejected_win_probability: Tensor | None = None,
        pair_logit: Tensor | None = None,
        chosen_token_kl: Tensor | None = None,
        rejected_token_kl: Tensor | None = None,
        mean_entropy: Tensor | None = None,
        chosen_score: Tensor | None = None,
        rejected_score: Tensor | None = None,
        other_chosen_logps: Tensor | None = None,
        other_rejected_logps: Tensor | None = None,
        chosen_squared_probability_log: Tensor | None = None,
        rejected_squared_probability_log: Tensor | None = None,
        chosen_token_kl_product: Tensor | None = None,
        rejected_token_kl_product: Tensor | None = None,
        chosen_from_opponent: Tensor | None = None,
        rejected_from_opponent: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PreferenceBatch:
        """A batch of B pairs; every argument is ``[B]`` (``mask``: the pair is there).

        ``pair_logit`` is the logit that the chosen answer beats the rejected one, position bias averaged out;
        ``mean_entropy`` is the mean over both answers.

        Raises:
            InputError: one half of a field is missing.
        """

        def both(name: str, chosen: Tensor | None, rejected: Tensor | None) -> Tensor | None:
            if chosen is None and rejected is None:
                return None
            if chosen is None or rejected is None:
                raise InputError(f"{name} is needed for the chosen and for the rejected answer, or for neither")
            return torch.stack([chosen, rejected], dim=1)

        logits = None
        if pair_logit is not None:
            logits = pair_logit.new_zeros(len(pair_logit), 2, 2)
            logits[:, 0, 1], logits[:, 1, 0] = pair_logit, -pair_logit
        policy = both("policy_logps", chosen_logps, rejected_logps)
        assert policy is not None
        return cls(
            policy_logps=policy,
            mask=both("mask", mask, mask),
            reference_logps=both("reference_logps", reference_chosen_logps, reference_rejected_logps),
            lengths=both("lengths", chosen_lengths, rejected_lengths),
            win_probabilities=both("win_probabilities", chosen_win_probability, rejected_win_probability),
            pair_logits=logits,
            scores=both("scores", chosen_score, rejected_score),
            token_kl=both("token_kl", chosen_token_kl, rejected_token_kl),
            mean_entropy=both("mean_entropy", mean_entropy, mean_entropy),
            other_logps=both("other_logps", other_chosen_logps, other_rejected_logps),
            squared_probability_logs=both(
                "squared_probability_logs", chosen_squared_probability_log, rejected_squared_probability_log
            ),
            token_kl_products=both("token_kl_products", chosen_token_kl_product, rejected_token_kl_product),
            from_opponent=both("from_opponent", chosen_from_opponent, rejected_from_opponent),
        )
