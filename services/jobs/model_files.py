"""Reads a local model folder (transformers format) without torch: its configuration, tensors' shapes and EOS ids.

Shapes come from the header of the safetensors files, so they hold for every architecture; no weights are read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from learner.errors import InputError
from services.jobs.files import reading

MAX_HEADER_BYTES = 100_000_000
OUTPUT_MODULES = ("lm_head", "embed_out")
EMBEDDING_MODULES = ("embed_tokens", "wte", "wpe", "embed_in", "embed_positions", "word_embeddings")


@dataclass(frozen=True)
class ModelFiles:
    """What a model folder says about its model.

    Attributes:
        tensors: name to shape, of all safetensors files; empty where the folder holds none.
        eos_token_ids: ids that end an answer: of the generation configuration, else of the model's, else the tokenizer's.
    """

    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    weight_bytes: int
    eos_token_ids: tuple[int, ...] = field(default=())

    @property
    def architecture(self) -> str | None:
        """Name of the model's class, e.g. ``LlamaForCausalLM``."""
        names = self.config.get("architectures") or []
        return str(names[0]) if names else None

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the configuration; models that also see keep it apart."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    def number(self, *names: str) -> int | None:
        """The first of the configuration's ``names`` that holds a whole number."""
        for name in names:
            value = self.text_config.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    @property
    def context_tokens(self) -> int | None:
        """Prompt and answer together, in tokens, that the model was made for."""
        return self.number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

    @property
    def hidden_size(self) -> int | None:
        """Width of the hidden states."""
        return self.number("hidden_size", "n_embd", "d_model")

    @property
    def layers(self) -> int | None:
        """Number of transformer layers."""
        return self.number("num_hidden_layers", "n_layer", "num_layers")

    @property
    def heads(self) -> int | None:
        """Number of query heads."""
        return self.number("num_attention_heads", "n_head")

    @property
    def key_value_heads(self) -> int | None:
        """Number of key-value heads."""
        return self.number("num_key_value_heads") or self.heads

    @property
    def head_size(self) -> int | None:
        """Width of one attention head."""
        explicit = self.number("head_dim")
        if explicit is not None:
            return explicit
        return self.hidden_size // self.heads if self.hidden_size and self.heads else None

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding."""
        return self.number("vocab_size")

    @cached_property
    def parameters(self) -> int | None:
        """Number of weights: counted where the folder holds them, else reckoned from the configuration of Llama-like models."""
        if self.tensors:
            return sum(prod(shape) for shape in self.tensors.values())
        if not self.linear_layers or not self.vocabulary or not self.hidden_size:
            return None
        embeddings = self.vocabulary * self.hidden_size * (1 if self.text_config.get("tie_word_embeddings") else 2)
        return sum(prod(shape) for shape in self.linear_layers.values()) + embeddings

    @cached_property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Linear layers that may get an adapter: full name to (outputs, inputs). Without embeddings and the output layer.

        From the tensors where the folder holds them, else from the configuration of Llama-like models, else empty.
        """
        if not self.tensors:
            return self._linear_layers_of_configuration()
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in self.tensors.items()
            if name.endswith(".weight")
            and len(shape) == 2
            and not any(part in name.split(".") for part in (*OUTPUT_MODULES, *EMBEDDING_MODULES))
        }

    @property
    def linear_names(self) -> tuple[str, ...]:
        """The last parts of the linear layers' names, sorted: ``down_proj``, ``gate_proj``, …"""
        return tuple(sorted({name.rsplit(".", 1)[-1] for name in self.linear_layers}))

    def _linear_layers_of_configuration(self) -> dict[str, tuple[int, int]]:
        hidden, heads, head, inner = self.hidden_size, self.heads, self.head_size, self.number("intermediate_size")
        if not (hidden and heads and head and inner and self.layers and self.key_value_heads):
            return {}
        keys = self.key_value_heads * head
        shapes = {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        return {f"model.layers.{layer}.{name}": shape for layer in range(self.layers) for name, shape in shapes.items()}


def read_model(folder: Path, key: str = "policy.model") -> ModelFiles:
    """Read a model folder's JSON files and tensor shapes.

    Args:
        key: the job's key that names the folder, for errors.

    Raises:
        InputError: no configuration, broken JSON, a broken safetensors header, weights in pickled files only, or what cannot be read.
    """
    with reading(f"{key}: {folder}"):
        found = (folder / "config.json").is_file()
    if not found:
        hint = (
            " (it holds a LoRA adapter: name it under policy.adapter)"
            if (folder / "adapter_config.json").is_file()
            else ""
        )
        raise InputError(f"{key}: {folder} has no config.json, so it is not a model in the transformers format{hint}")
    config = read_json(folder / "config.json", key)
    generation = (
        read_json(folder / "generation_config.json", key) if (folder / "generation_config.json").is_file() else {}
    )
    tokenizer_config = (
        read_json(folder / "tokenizer_config.json", key) if (folder / "tokenizer_config.json").is_file() else {}
    )
    weights = _weight_files(folder, key)
    if not weights and any(folder.glob("*.bin")):
        raise InputError(f"{key}: {folder} holds its weights in pickled .bin files; convert them to safetensors")
    tensors: dict[str, tuple[int, ...]] = {}
    for path in weights:
        tensors.update(safetensors_shapes(path, key))
    text_config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    return ModelFiles(
        folder=folder,
        config=config,
        generation_config=generation,
        tokenizer_config=tokenizer_config,
        tensors=tensors,
        weight_bytes=sum(path.stat().st_size for path in weights),
        eos_token_ids=_ids(generation.get("eos_token_id"))
        or _ids(text_config.get("eos_token_id"))
        or _ids(config.get("eos_token_id")),
    )


def _weight_files(folder: Path, key: str) -> list[Path]:
    """The safetensors files that make up the model: those of the index, where there is one (a folder may hold a second copy)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        paths = [folder / name for name in sorted(set(read_json(index, key).get("weight_map", {}).values()))]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise InputError(
                f"{key}: {folder} lacks {', '.join(missing)}, which its index names; fetch the model again"
            )
        return paths
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))


def read_json(path: Path, key: str) -> dict[str, Any]:
    """A JSON file's mapping.

    Raises:
        InputError: the file is missing, cannot be read, or is no JSON mapping.
    """
    try:
        with reading(f"{key}: {path}"):
            if not path.exists():
                raise InputError(f"{key}: there is no file {path}")
            data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {path} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{key}: {path} must hold a JSON mapping")
    return data


def safetensors_shapes(path: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone.

    Raises:
        InputError: it cannot be read, or the header is not one.
    """
    with reading(f"{key}: {path}"), path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    try:
        entries = json.loads(header)
        return {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{key}: {path} is not a safetensors file, or is cut off; fetch it again") from None


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(value) if isinstance(value, list) else ()
