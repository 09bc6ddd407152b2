"""Rules that make one gradient out of several ranks', of which some may be wrong. Pure, and deterministic."""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_median(vectors: Tensor) -> Tensor:
    """``[n]``: the median of every coordinate; of an even number the mean of the middle two.

    Args:
        vectors: ``[p, n]``, one a rank, each an estimate of the same gradient. Those that are not finite are left out.

    Returns:
        NaN everywhere where no vector is finite.
    """
    found = list(vectors[vectors.isfinite().all(dim=1)].unbind())
    count = len(found)
    if count == 0:
        return torch.full_like(vectors[0], torch.nan)
    # odd-even transposition: for a handful of long vectors many times as fast as to sort every coordinate by itself
    for turn in range(count):
        for i in range(turn % 2, count - 1, 2):
            found[i], found[i + 1] = torch.minimum(found[i], found[i + 1]), torch.maximum(found[i], found[i + 1])
    return (found[(count - 1) // 2] + found[count // 2]) / 2


def flag_aggregate(vectors: Tensor, *, directions: int = 1, reweightings: int = 1, epsilon: float = 1e-7) -> Tensor:
    """``[n]``: the Flag Aggregator (arXiv 2302.05865), for gradients of which a minority may be wrong.

    The vectors are brought to length 1, ``u_i = g_i / |g_i|``, so that none counts for its size. ``Y``, ``[n, r]`` with
    orthonormal columns, spans the directions that most of them agree on: iteratively reweighted least squares on
    ``sum_i sqrt(1 - |Y^T u_i|^2)``, that is, the first r left singular vectors of ``[w_i u_i]`` with
    ``w_i = (|min(r, 1) - |Y^T u_i|^2| + epsilon)^(-1/4)``, from weights of 1. The result is ``s Y Y^T sum_i u_i``.

    The paper's code takes ``s = 1 / r``, so that the result grows with the number of ranks, and every learning rate has
    to be found anew. Here ``s`` is the median of the lengths ``|g_i|`` over the number of ranks: equal gradients
    give themselves back, as the mean of them does, and no single rank can make the step longer.

    ``Y = U W V L^(-1/2)`` with ``W U^T U W = V L V^T``, so that only the Gram matrix of the vectors, and the result, which
    is a combination of them, take more than ``p`` dimensions: ``O(p^2 n)``. Terms of the paper for augmented data
    (differences of gradients, its lambda) are left out. Eigenvectors' signs cancel, and nothing is drawn at random.

    Args:
        vectors: ``[p, n]``, one a rank, each an estimate of the same gradient. Those that are not finite are left out,
            and those of zeros have no direction.
        directions: r, from 1 to p; more keep more of the ranks' own noise, and of a wrong one's.
        reweightings: times that the weights are renewed. One is what the paper's code makes. With many of them gradients
            that hardly agree leave a single rank to decide.
        epsilon: keeps the weight of a vector that lies in the span finite.

    Returns:
        NaN everywhere where no vector is finite.
    """
    products = (vectors @ vectors.T).double().cpu()
    finite = products.diagonal().isfinite()
    if not finite.any():
        return torch.full_like(vectors[0], torch.nan)
    if not finite.all():  # times 0 they would still be NaN
        vectors, products = vectors[finite.to(vectors.device)], products[finite][:, finite]
    count, rank = len(vectors), min(directions, len(vectors))
    lengths = products.diagonal().sqrt()
    inverse_lengths = torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
    gram = inverse_lengths[:, None] * products * inverse_lengths  # U^T U
    weights = combination = torch.ones(count, dtype=torch.float64)
    for _ in range(reweightings + 1):
        values, basis = torch.linalg.eigh(weights[:, None] * gram * weights)
        kept = values[-rank:]
        # the vectors may span fewer directions than are asked for
        roots = torch.where(kept > epsilon * values[-1], kept.clamp(min=epsilon).rsqrt(), torch.zeros_like(kept))
        coordinates = weights[:, None] * basis[:, -rank:] * roots  # Y = U coordinates
        components = coordinates.T @ gram  # Y^T u_i, a column each
        combination = coordinates @ components.sum(dim=1)
        weights = ((min(rank, 1) - components.square().sum(dim=0)).abs() + epsilon) ** -0.25
    factors = lengths.quantile(0.5) / count * combination * inverse_lengths
    combined: Tensor = factors.to(vectors) @ vectors
    return combined
