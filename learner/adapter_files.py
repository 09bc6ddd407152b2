"""An adapter as bytes, in peft's own layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

Rule 5: the same weights always give the same bytes. peft itself writes sets in hash order, so the files are written
here: keys sorted, ``target_modules`` sorted, float32 weights, and one fixed line of metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from learner.errors import InputError
from learner.records import ADAPTER_FILES

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES

_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_rslora": "rank-stabilised scaling",
    "modules_to_save": "fully trained modules",
    "lora_bias": "LoRA biases",
    "rank_pattern": "ranks that differ by layer",
    "alpha_pattern": "scales that differ by layer",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "adapted parameters",
}


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file whose bytes depend on names and values alone."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    data: bytes = save(ordered, metadata={"format": "pt"})
    return data


def bytes_to_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        InputError: the bytes are not such a file.
    """
    try:
        return dict(load(data))
    except Exception as error:  # the library raises its own types, which carry no common base
        raise InputError(f"{WEIGHTS_FILE}: not a readable safetensors file ({error})") from error


def json_to_bytes(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """JSON with sorted keys and a final newline."""
    return (json.dumps(value, indent=indent, sort_keys=True) + "\n").encode()


def adapter_to_files(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The two files of an adapter.

    Args:
        config: peft's configuration as plain JSON values.
        state: weights by peft's names (without the adapter's own).
    """
    weights = {name: value.to(torch.float32) for name, value in state.items()}
    return {CONFIG_FILE: json_to_bytes(config, indent=2), WEIGHTS_FILE: tensors_to_bytes(weights)}


def files_to_adapter(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the float32 weights that two files hold.

    Raises:
        InputError: a file is missing or unreadable.
    """
    missing = [name for name in ADAPTER_FILES if name not in files]
    if missing:
        raise InputError(f"the adapter lacks {' and '.join(missing)}; give a folder that peft's save_pretrained wrote")
    try:
        config = json.loads(files[CONFIG_FILE])
    except ValueError as error:
        raise InputError(f"{CONFIG_FILE}: not JSON ({error})") from error
    weights = {name: value.to(torch.float32) for name, value in bytes_to_tensors(files[WEIGHTS_FILE]).items()}
    return config, weights


def check_adapter(config: Mapping[str, Any], state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Check that an adapter is a plain LoRA adapter on the layers that this job trains.

    Args:
        config: peft's configuration.
        state: its weights.
        shapes: name to shape of weights of its rank on those layers.

    Raises:
        InputError: it is of another kind, or on other layers.
    """
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"policy.adapter: peft_type {config.get('peft_type')} is not LORA; only LoRA adapters can be trained"
        )
    for key, meaning in _UNSUPPORTED.items():
        if config.get(key):
            raise InputError(f"policy.adapter: {key} ({meaning}) is not supported; train a plain LoRA adapter")
    if config.get("bias", "none") != "none":
        raise InputError(f"policy.adapter: bias {config['bias']} is not supported; train a plain LoRA adapter")
    if {name: value.shape for name, value in state.items()} != dict(shapes):
        differing = sorted(set(state) ^ set(shapes)) or ["their shapes"]
        raise InputError(
            f"policy.adapter: its layers are not those of adapters.target_modules (differing: {differing[0]}); "
            f"set adapters.target_modules: {config.get('target_modules')}, or start from an adapter of this model"
        )
