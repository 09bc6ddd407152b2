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
    ordered = _finite(vectors).sort(dim=0).values
    count = len(ordered)
    if count == 0:
        return torch.full_like(vectors[0], torch.nan)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def flag_aggregate(vectors: Tensor, *, directions: int = 1, reweightings: int = 1, epsilon: float = 1e-7) -> Tensor:
    """``[n]``: the Flag Aggregator (arXiv 2302.05865), for gradients of which a minority may be wrong.

    The vectors are brought to length 1, ``u_i = g_i / |g_i|``, so that none counts for its size. ``Y``, ``[n, r]`` with
    orthonormal columns, spans the directions that most of them agree on: iteratively reweighted least squares on
    ``sum_i sqrt(1 - |Y^T u_i|^2)``, that is, the first r left singular vectors of ``[w_i u_i]`` with
    ``w_i = (|min(r, 1) - |Y^T u_i|^2| + epsilon)^(-1/4)``, from weights of 1. The result is ``s Y Y^T sum_i u_i``.

    The paper's code takes ``s = 1 / r``, so that the result grows with the number of ranks, and every learning rate has
    to be found anew. Here ``s`` is the median of the lengths ``|g_i|`` over the number of ranks: equal gradients
    give themselves back, as the mean of them does, and no single rank can make the step longer.

    Everything but the lengths, the Gram matrix and the result happens in ``p`` dimensions: ``Y = U W V L^(-1/2)`` with
    ``W U^T U W = V L V^T``, so that it costs ``O(p^2 n)`` and no ``[n, r]`` matrix is formed. Terms of the paper for
    augmented data (differences of gradients, its lambda) are left out. Eigenvectors' signs cancel, and nothing is drawn
    at random.

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
    found = _finite(vectors)
    if len(found) == 0:
        return torch.full_like(vectors[0], torch.nan)
    lengths = torch.linalg.vector_norm(found, dim=1)
    units = found / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None]
    gram = (units @ units.T).double().cpu()
    projected = torch.ones(len(units), dtype=torch.float64)
    weights = torch.ones_like(projected)
    rank = min(directions, len(units))
    for _ in range(reweightings + 1):
        values, vectors_of_gram = torch.linalg.eigh(weights[:, None] * gram * weights)
        kept, basis = values[-rank:], vectors_of_gram[:, -rank:]
        spans = kept > epsilon * max(float(values[-1]), 0.0)  # fewer directions than asked for: the vectors agree
        inverse_root = torch.where(spans, kept.clamp(min=epsilon).rsqrt(), torch.zeros_like(kept))
        coordinates = (weights[:, None] * basis) * inverse_root  # Y = U coordinates
        components = coordinates.T @ gram  # Y^T u_i, a column each
        projected = coordinates @ components.sum(dim=1)
        weights = ((min(rank, 1) - components.square().sum(dim=0)).abs() + epsilon) ** -0.25
    scale = lengths.double().cpu().quantile(0.5) / len(units)
    combined: Tensor = (scale * projected).to(found) @ units
    return combined


def _finite(vectors: Tensor) -> Tensor:
    """Those without NaN or infinity, whose lengths do not overflow either."""
    return vectors[torch.linalg.vector_norm(vectors, dim=1).isfinite()]
