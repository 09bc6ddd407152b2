"""What a trainer needs beside the adapter to go on exactly where it stopped (rule 11): safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learner.adapter_files import bytes_to_tensors, json_to_bytes, tensors_to_bytes
from learner.config import OptimizerConfig
from learner.errors import InputError

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
SLOW_OPTIMIZER_FILE = "optimizer_slow.safetensors"


def build_optimizer(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over the adapter's weights, in the order of their names."""
    weights = list(parameters.values())
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(weights, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def optimizer_to_bytes(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> bytes:
    """The optimizer's moments and step counts, by ``{weight}::{name}``."""
    tensors: dict[str, Tensor] = {}
    for name, weight in parameters.items():
        for key, value in optimizer.state.get(weight, {}).items():
            tensors[f"{name}::{key}"] = torch.as_tensor(value)
    return tensors_to_bytes(tensors)


def optimizer_from_bytes(data: bytes, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set the optimizer's state.

    Raises:
        InputError: it belongs to other weights.
    """
    state: dict[int, dict[str, Tensor]] = {}
    numbers = {name: i for i, name in enumerate(parameters)}
    for key, value in bytes_to_tensors(data).items():
        name, _, field = key.rpartition("::")
        if name not in numbers:
            raise InputError(
                f"{OPTIMIZER_FILE}: {name} is not a weight of this adapter; resume with the job's own settings"
            )
        state.setdefault(numbers[name], {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def state_to_bytes(state: Mapping[str, Any]) -> bytes:
    """The trainer's numbers as JSON, which keeps float64 exactly."""
    return json_to_bytes(state)


def state_from_files(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The trainer's numbers.

    Raises:
        InputError: the version carries none, or they cannot be read.
    """
    missing = [name for name in (STATE_FILE, OPTIMIZER_FILE) if name not in files]
    if missing:
        raise InputError(
            f"the version lacks {' and '.join(missing)}, so training cannot go on from it; resume from another"
        )
    try:
        state: dict[str, Any] = json.loads(files[STATE_FILE])
    except ValueError as error:
        raise InputError(f"{STATE_FILE}: not JSON ({error})") from error
    return state
