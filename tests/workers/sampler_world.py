"""Small models, a byte-level tokenizer and peft adapters as bytes, for the tests of the sampler and of parity."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from learner.digests import adapter_digest, sha256
from learner.records import ADAPTER_FILES, FileEntry, VersionManifest

IMPORTED_ONCE = ["vllm.v1.worker.cpu_worker", "vllm.v1.executor.uniproc_executor", "vllm.v1.engine.core"]

SPECIALS = ["<pad>", "<s>", "</s>", "<|end|>"]


@contextmanager
def one_import_of_vllm() -> Iterator[None]:
    """Engines' processes are forked from one that has imported vLLM: importing it is most of a small engine's start.

    vLLM's CPU backend asks for processes that begin anew (`spawn`). The standard library's fork server gives it processes that begin as a
    copy of one that has done nothing but import.
    """
    contexts = multiprocessing.get_context
    multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing, "get_context", lambda method=None: contexts("forkserver" if method == "spawn" else method)
        )
        yield


def byte_tokenizer(pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """256 bytes and four special tokens; ``</s>`` (id 258) ends an answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate(alphabet)}
    vocabulary.update({name: 256 + place for place, name in enumerate(SPECIALS)})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        additional_special_tokens=["<|end|>"],
    )
    return fast


def tiny_model(
    folder: Path, kind: str = "llama", *, pad: str = "<pad>", generation: dict[str, Any] | None = None, **overrides: Any
) -> Path:
    """Write a random model of a family, float32, head size 32, with the byte tokenizer."""
    settings: dict[str, Any] = {
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "pad_token_id": 256,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        **overrides,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
    for name, value in (generation or {}).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    byte_tokenizer(pad).save_pretrained(folder)
    return folder


def adapter_files(
    model: Path,
    seed: int,
    *,
    rank: int = 8,
    scale: float = 0.3,
    targets: str | list[str] = "all-linear",
    **settings: Any,
) -> dict[str, bytes]:
    """A random LoRA adapter that changes what the model says, in peft's own files."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, scale / rank**0.5)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        return {name: (Path(folder) / name).read_bytes() for name in ADAPTER_FILES}


def manifest(version: int, files: dict[str, bytes], *, rank: int = 8, job: str = "job") -> VersionManifest:
    """The manifest that a version store would give these files."""
    return VersionManifest(
        job_id=job,
        module="fast",
        version=version,
        learner_step=0,
        digest=adapter_digest(files),
        files={name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in files.items()},
        base_model="tiny",
        rank=rank,
        created_at=datetime.now(UTC),
    )


def peft_logprobs(model: Path, files: dict[str, bytes] | None, texts: list[list[int]]) -> list[list[float]]:
    """Per-token log-probabilities from the second token on, by transformers and peft in float32."""
    from peft import PeftModel

    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        if files is not None:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            policy = PeftModel.from_pretrained(policy, folder)
    policy.eval()
    found = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([text])
            logprobs = policy(input_ids=ids).logits[0, :-1].log_softmax(-1)
            found.append(logprobs.gather(1, ids[0, 1:, None]).squeeze(1).tolist())
    return found
