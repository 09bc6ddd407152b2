"""LoRA on vLLM's CPU backend, as one product per adapter instead of one per token.

vLLM's own CPU kernels copy the adapter's matrices once for every token of a step, and give the tokens of requests without an adapter the
one in the last slot. Measured here they halve the speed, take memory in proportion to tokens x rank x width, and answer for the base with
an adapter on it. ``install`` replaces them, inside vLLM's worker process, by products over the rows that share an adapter.
"""

from __future__ import annotations

from typing import Any

import torch

Groups = list[tuple[int, torch.Tensor | None]]
"""Adapter slot, and the rows that use it; ``None`` for all rows. Rows without an adapter are in no group."""


def group_rows(slots: torch.Tensor) -> Groups:
    """Rows by adapter slot.

    Args:
        slots: [rows] adapter slot of each row, -1 for none.
    """
    found = torch.unique(slots).tolist()
    if len(found) == 1:
        return [] if found[0] < 0 else [(found[0], None)]
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in found if slot >= 0]


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    output_slices: tuple[int, ...],
    groups: Groups,
) -> None:
    """Add each row's ``B A x`` to ``y``, in place, computed in float32.

    Args:
        y: [rows, outputs]; packed layers (query, key and value) lie side by side.
        x: [rows, inputs].
        a_stacked: per slice, [slots, 1, rank, inputs].
        b_stacked: per slice, [slots, 1, slice outputs, rank], already scaled.
        output_slices: width of each slice of ``y``.
        groups: from ``group_rows``.
    """
    for slot, rows in groups:
        inputs = (x if rows is None else x[rows]).float()
        start = 0
        for a, b, width in zip(a_stacked, b_stacked, output_slices, strict=True):
            delta = (inputs @ a[slot, 0].float().t()) @ b[slot, 0].float().t()
            target = y[:, start : start + width]
            if rows is None:
                target += delta.to(y.dtype)
            else:
                target.index_add_(0, rows, delta.to(y.dtype))
            start += width


def install() -> None:
    """Put these kernels in the place of vLLM's CPU ones, in this process."""
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        PunicaWrapperBase.update_metadata(self, *args, **kwargs)
        self.sparring_groups = group_rows(self.token_lora_indices)

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        if scale != 1.0 or kwargs:
            raise NotImplementedError(f"vLLM asks for a LoRA product with scale {scale} and {sorted(kwargs)}")
        add_lora(
            y.view(-1, y.shape[-1]),
            x.view(-1, x.shape[-1]),
            lora_a_stacked,
            lora_b_stacked,
            output_slices,
            self.sparring_groups,
        )

    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
