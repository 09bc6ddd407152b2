"""Adapters of several domains as one (COFS-DPO, arXiv 2406.05534, as reconstructed): exact sums of LoRA products.

After domain i the policy is ``base + DW_i`` with ``DW_i = C_{i-1} + D_i``: the frozen combination that the domain
started from (``C_0 = 0``) and the fresh increment, a LoRA product ``D = (alpha / rank) B A``, that was trained on it.
The combination after domain T is ``C_T = sum_i lambda_i DW_i`` with lambda on the simplex. In terms of increments,
``DW_i = sum_j a_ij D_j`` with a lower triangular matrix of ones on the diagonal, and ``C_T = sum_j c_j D_j`` with
``c = lambda^T a``. So every increment is stored once, a domain adds its own rank and no more, and all weight on domain i
gives back exactly the policy at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from learner.adapter_files import bytes_to_tensors, json_to_bytes, tensors_to_bytes
from learner.errors import InputError
from learner.records import Record

HISTORY_FILE = "domains.json"
"""Which domains there were, and what each started from."""

_A, _B = ".lora_A.weight", ".lora_B.weight"

Layers = dict[str, tuple[Tensor, Tensor]]
"""Layer name to A ``[rank, in]`` and B ``[out, rank]``, sorted."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA weights with their scale: every layer's update is ``(alpha / rank) B A``.

    ``state`` is by peft's names as in ``learner.policy.AdapterState``, float32 on the CPU: of every layer
    ``{layer}.lora_A.weight`` ``[rank, in]`` and ``{layer}.lora_B.weight`` ``[out, rank]``.
    """

    state: Mapping[str, Tensor]
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        """Check names, shapes and types.

        Raises:
            InputError: they are not those of such an adapter.
        """
        if self.rank < 1 or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(
                f"an adapter of rank {self.rank} and alpha {self.alpha} has no scale; both must be above 0"
            )
        layers = {name.removesuffix(_A).removesuffix(_B) for name in self.state}
        if not layers or set(self.state) != {layer + part for layer in layers for part in (_A, _B)}:
            raise InputError("an adapter needs a lora_A.weight and a lora_B.weight of every layer, and nothing else")
        for name, value in self.state.items():
            if value.dim() != 2 or value.shape[0 if name.endswith(_A) else 1] != self.rank:
                raise InputError(
                    f"{name}: its shape {list(value.shape)} is not of rank {self.rank}; give the adapter's own rank"
                )
            if value.dtype != torch.float32 or value.device.type != "cpu":
                raise InputError(
                    f"{name}: {value.dtype} on {value.device}; give float32 on the CPU, as Policy.state does"
                )

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / self.rank

    def layers(self) -> Layers:
        """A and B of every layer."""
        names = sorted(name.removesuffix(_A) for name in self.state if name.endswith(_A))
        return {name: (self.state[name + _A], self.state[name + _B]) for name in names}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(out, in)`` of every layer."""
        return {name: (b.shape[0], a.shape[1]) for name, (a, b) in self.layers().items()}


def combine(adapters: Sequence[Adapter], coefficients: Sequence[float]) -> Adapter:
    """The adapter whose updates are ``sum_i c_i s_i B_i A_i``, exactly: A and B stacked, so that ranks add up.

    Its alpha is its rank, so that its scale is 1; coefficients and scales are in A. An adapter with coefficient 0 is left
    out; where none is left, the result is a rank of zeros, which changes nothing.

    Args:
        adapters: at least one, all on the same layers; ranks and scales may differ.
        coefficients: one each, finite; they may be negative and need not sum to 1.

    Raises:
        InputError: counts or layers differ, or a coefficient is not finite.
    """
    if not adapters or len(adapters) != len(coefficients):
        raise InputError(
            f"{len(coefficients)} coefficients for {len(adapters)} adapters; give one each, of at least one"
        )
    wrong = [c for c in coefficients if not math.isfinite(c)]
    if wrong:
        raise InputError(f"a coefficient is {wrong[0]}; coefficients must be finite")
    for adapter in adapters[1:]:
        _check_layers(adapters[0], adapter)
    used = [(adapter.layers(), c * adapter.scale) for adapter, c in zip(adapters, coefficients, strict=True) if c != 0]
    state: dict[str, Tensor] = {}
    for layer, (rows, columns) in adapters[0].shapes().items():
        parts = [(factor * layers[layer][0], layers[layer][1]) for layers, factor in used]
        parts = parts or [(torch.zeros(1, columns), torch.zeros(rows, 1))]
        state[layer + _A] = torch.cat([a for a, _ in parts], dim=0)
        state[layer + _B] = torch.cat([b for _, b in parts], dim=1)
    rank = sum(adapter.rank for adapter, c in zip(adapters, coefficients, strict=True) if c != 0) or 1
    return Adapter(state, rank, float(rank))


def truncate(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """The nearest adapter of a lower rank, layer by layer (Eckart and Young), and how far it is.

    The singular values of ``B A`` are those of ``R_B R_A^T`` with ``B = Q_B R_B`` and ``A^T = Q_A R_A``, so nothing of
    the layer's own size ``[out, in]`` is formed. Computed in float64. An adapter of ``rank`` or less comes back as it is.

    Args:
        adapter: of any rank.
        rank: at least 1.

    Returns:
        The adapter, with a scale of 1, and the Frobenius norm of what is lost over that of the whole, over all layers
        together, in [0, 1].

    Raises:
        InputError: ``rank`` is below 1.
    """
    if rank < 1:
        raise InputError(f"rank: {rank} must be at least 1")
    if rank >= adapter.rank:
        return adapter, 0.0
    state: dict[str, Tensor] = {}
    lost, whole = [], []
    for layer, (a, b) in adapter.layers().items():
        q_b, r_b = torch.linalg.qr(b.to(torch.float64))
        q_a, r_a = torch.linalg.qr(a.to(torch.float64).T)
        left, values, right = torch.linalg.svd(adapter.scale * (r_b @ r_a.T), full_matrices=False)
        root = values[:rank].sqrt()
        kept = len(root)  # a layer smaller than the rank has fewer singular values; zeros fill it up
        new_a, new_b = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
        new_a[:kept] = root[:, None] * (right[:rank] @ q_a.T)
        new_b[:, :kept] = (q_b @ left[:, :rank]) * root
        state[layer + _A], state[layer + _B] = new_a, new_b
        lost.append(float(values[rank:].square().sum()))
        whole.append(float(values.square().sum()))
    error = math.sqrt(math.fsum(lost) / math.fsum(whole)) if any(whole) else 0.0
    return Adapter(state, rank, float(rank)), error


class _Entry(Record):
    """A domain in the history's file."""

    name: str
    rank: int
    alpha: float
    start_coefficients: tuple[float, ...]


class _Entries(Record):
    domains: tuple[_Entry, ...]


class DomainHistory:
    """The increments of the domains learned so far, and what each domain started from."""

    def __init__(self) -> None:
        self._domains: list[str] = []
        self._increments: list[Adapter] = []
        self._starts: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return len(self._domains)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names, in the order of learning."""
        return tuple(self._domains)

    @property
    def increments(self) -> tuple[Adapter, ...]:
        """``D_1 .. D_T``."""
        return tuple(self._increments)

    @property
    def matrix(self) -> tuple[tuple[float, ...], ...]:
        """The lower triangular ``a``, ``[T, T]``: row i has the coefficients of the policy at the end of domain i."""
        count = len(self)
        return tuple((*start, 1.0, *(0.0,) * (count - 1 - i)) for i, start in enumerate(self._starts))

    def add(self, domain: str, increment: Adapter, start_coefficients: Sequence[float]) -> None:
        """Append a domain that has ended.

        Args:
            domain: its name, unlike the others'.
            increment: what was trained on it, without what it started from.
            start_coefficients: of the combination that it started from, one for each earlier increment: what
                :meth:`coefficients` gave then.

        Raises:
            InputError: the name is taken, the layers differ, or coefficients are too few, too many or not finite.
        """
        if not domain or domain in self._domains:
            raise InputError(f"domain: {domain!r} is empty or was learned before; give every domain a name of its own")
        start = tuple(map(float, start_coefficients))
        if len(start) != len(self) or not all(map(math.isfinite, start)):
            raise InputError(
                f"domain {domain} starts from {len(start)} coefficients after {len(self)} domains; "
                "give one finite number for each"
            )
        if self._increments:
            _check_layers(self._increments[0], increment)
        self._domains.append(domain)
        self._increments.append(increment)
        self._starts.append(start)

    def coefficients(self, weights: Sequence[float]) -> tuple[float, ...]:
        """``c = lambda^T a``: what each increment counts in the combination of the domains' policies, ``[T]``.

        Args:
            weights: lambda, ``[T]``, on the simplex.

        Raises:
            InputError: they are not on the simplex, or not one for each domain.
        """
        # All weight on one domain must give its row to the bit: 0 and 1 multiply, and fsum adds, without rounding.
        if (
            len(weights) != len(self)
            or not all(0 <= weight <= 1 for weight in weights)
            or abs(math.fsum(weights) - 1) > 1e-6
        ):
            raise InputError(
                f"weights {tuple(weights)} for {len(self)} domains; give one each, none below 0, with a sum of 1"
            )
        columns = zip(*self.matrix, strict=True)
        return tuple(math.fsum(w * a for w, a in zip(weights, column, strict=True)) for column in columns)

    def adapter(self, weights: Sequence[float]) -> Adapter:
        """The combination ``sum_i lambda_i DW_i`` of the domains' policies.

        Raises:
            InputError: as :meth:`coefficients`.
        """
        return combine(self._increments, self.coefficients(weights))

    def policy_of(self, domain: int) -> Adapter:
        """The policy ``DW_i`` at the end of a domain, which counts from 0.

        Raises:
            InputError: there is no such domain.
        """
        if not 0 <= domain < len(self):
            raise InputError(f"domain: there is no number {domain} among {len(self)}; they count from 0")
        return combine(self._increments, self.matrix[domain])

    def to_files(self) -> dict[str, bytes]:
        """The history as files, one of its own for each increment; the same history always gives the same bytes."""
        entries = _Entries(
            domains=tuple(
                _Entry(name=name, rank=increment.rank, alpha=increment.alpha, start_coefficients=start)
                for name, increment, start in zip(self._domains, self._increments, self._starts, strict=True)
            )
        )
        files = {increment_file(i): tensors_to_bytes(increment.state) for i, increment in enumerate(self._increments)}
        return {HISTORY_FILE: json_to_bytes(entries.model_dump(mode="json"), indent=2)} | files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> DomainHistory:
        """The history that files hold, to the bit; names other than its own are left out.

        Raises:
            InputError: a file is missing or unreadable.
        """
        if HISTORY_FILE not in files:
            raise InputError(f"{HISTORY_FILE} is missing; give the files of a version that has learned a domain")
        try:
            entries = _Entries.model_validate_json(files[HISTORY_FILE])
        except ValidationError as error:
            raise InputError(f"{HISTORY_FILE}: not a history of domains ({error.errors()[0]['msg']})") from error
        history = cls()
        for i, entry in enumerate(entries.domains):
            if increment_file(i) not in files:
                raise InputError(f"{increment_file(i)} is missing; {HISTORY_FILE} names {len(entries.domains)} domains")
            try:
                state = bytes_to_tensors(files[increment_file(i)])
            except InputError as error:
                raise InputError(f"{increment_file(i)} of domain {entry.name} is unreadable: {error}") from error
            history.add(entry.name, Adapter(state, entry.rank, entry.alpha), entry.start_coefficients)
        return history


def increment_file(domain: int) -> str:
    """The name of the file with a domain's increment; domains count from 0."""
    return f"increment-{domain:03d}.safetensors"


def _check_layers(first: Adapter, other: Adapter) -> None:
    ours, theirs = first.shapes(), other.shapes()
    if ours != theirs:
        layer = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise InputError(
            f"adapters on different layers cannot be combined (differing: {layer}); "
            "train every domain with the same model and adapters.target_modules"
        )
