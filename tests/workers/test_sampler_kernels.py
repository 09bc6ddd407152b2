"""LoRA products on the CPU: every row gets its own adapter's update, and rows without an adapter get none."""

from __future__ import annotations

import pytest
import torch

from workers.sampler.cpu_kernels import add_lora, group_rows


@pytest.mark.parametrize(
    "slots", [[0, 0, 0, 0], [-1, -1, -1, -1], [2, -1, 0, 2], [-1, 1, -1, 1]], ids=["one", "none", "several", "some"]
)
def test_rows_get_their_own_adapter_and_only_that(slots: list[int]) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    widths = (6, 4)
    x = torch.randn(4, 5, generator=generator)
    a = tuple(torch.randn(3, 1, 2, 5, generator=generator) for _ in widths)
    b = tuple(torch.randn(3, 1, width, 2, generator=generator) for width in widths)
    start = torch.randn(4, sum(widths), generator=generator)
    y = start.clone()
    add_lora(y, x, a, b, widths, group_rows(torch.tensor(slots)))
    for row, slot in enumerate(slots):
        expected = start[row]
        if slot >= 0:
            update = [b[part][slot, 0] @ (a[part][slot, 0] @ x[row]) for part in range(2)]
            expected = expected + torch.cat(update)
        torch.testing.assert_close(y[row], expected)


def test_all_rows_of_one_adapter_need_no_selection() -> None:
    assert group_rows(torch.tensor([1, 1])) == [(1, None)]
    assert group_rows(torch.tensor([-1, -1])) == []


def test_half_precision_outputs_keep_their_type() -> None:
    y = torch.zeros(2, 4, dtype=torch.bfloat16)
    a, b = torch.ones(1, 1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 1, 4, 2, dtype=torch.bfloat16)
    add_lora(y, torch.ones(2, 3, dtype=torch.bfloat16), (a,), (b,), (4,), [(0, None)])
    assert y.dtype == torch.bfloat16
    assert y.unique().item() == 6
