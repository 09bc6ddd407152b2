"""Which device a scorer computes on."""

from __future__ import annotations

from typing import Literal

import torch

from learner.errors import InputError


def resolve_device(device: Literal["auto", "cpu", "cuda"], *, field: str) -> Literal["cpu", "cuda"]:
    """``auto`` is a GPU where there is one.

    Raises:
        InputError: a GPU is asked for, and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{field}: cuda, but this machine has no usable GPU; set it to auto or cpu")
    return device
