"""Differential information (arXiv 2505.23761): diagnostics of what a policy has learned beyond its reference, not a loss.

The differential information distribution from reference to policy is the normalised likelihood ratio,
``q(y) = (pi(y) / pi_ref(y)) / sum_y' (pi(y') / pi_ref(y'))``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def information_distribution(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """q over answers that are all there are, ``[..., Y]``, from both policies' log-probabilities of them."""
    return torch.softmax(policy_logps - reference_logps, dim=-1)


def information_entropy(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Entropy of q in nats, ``[...]``, exact over answers that are all there are, ``[..., Y]``."""
    log_q = torch.log_softmax(policy_logps - reference_logps, dim=-1)
    return -(log_q.exp() * log_q).sum(dim=-1)


def sampled_information_entropy(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Estimate of the entropy of q in nats, ``[...]``, from K answers that the policy wrote, ``[..., K]``.

    Importance weights ``q / pi`` are proportional to ``1 / pi_ref``; the normaliser is their mean. The longest answer
    dominates the weights of whole answers: to watch a training, give means over tokens instead of sums.
    """
    count = policy_logps.shape[-1]
    log_normaliser = torch.logsumexp(-reference_logps, dim=-1) - math.log(count)
    weights = torch.softmax(-reference_logps, dim=-1)
    return log_normaliser - (weights * (policy_logps - reference_logps)).sum(dim=-1)


def rejected_log_weights(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, proposal_logps: Tensor | None = None
) -> Tensor:
    """Log-weights, up to a constant, with which the best rejected answer is drawn from candidates, ``[..., K]``.

    The power law of section 4 has the optimal rejected answers follow ``pi_ref (pi_ref / pi)^beta``.

    Args:
        policy_logps: log-probabilities of the candidates under the policy that is aimed at, here the current one.
        reference_logps: under the reference.
        beta: of the objective.
        proposal_logps: under the policy that wrote the candidates; None: the reference wrote them.
    """
    target = (1 + beta) * reference_logps - beta * policy_logps
    return target - (reference_logps if proposal_logps is None else proposal_logps)


def log_margin(logps: Tensor) -> Tensor:
    """``log pi(y_w) - log pi(y_l)`` of pairs ``[B, 2]``. Theory orders it: least under the rejected answers' policy, then
    the reference, most under the trained one.
    """
    return logps[..., 0] - logps[..., 1]
