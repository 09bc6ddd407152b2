"""Tiny PairRM checkpoints and comparisons for the scorers' tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerFast

from learner.records import Prompt
from workers.scorers.base import Comparison
from workers.scorers.new_tokenizer import train_tokenizer
from workers.scorers.pairrm_model import new_pairrm, save_pairrm
from workers.scorers.pairrm_tokens import PairTokenizer

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "hello there, how are you?", "42 is the answer"]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "position_buckets": 16,
}


def pair_tokenizer(max_source_tokens: int = 64, max_total_tokens: int = 160) -> PairTokenizer:
    return PairTokenizer(train_tokenizer(TEXTS, 300), max_source_tokens, max_total_tokens)


def write_hf_layout(folder: Path, *, seed: int = 0) -> None:
    """The layout of llm-blender/PairRM-hf: weights of DebertaV2PairRM, a tokenizer that holds the prefixes."""
    torch.manual_seed(seed)
    tokenizer = pair_tokenizer()
    model = new_pairrm(tokenizer, dropout=0.1, **SHAPE)
    # Fresh weights are so small that every logit is nearly 0, which would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_pairrm(model, tokenizer, folder)


def write_original_layout(folder: Path, hf_folder: Path, backbone: Path, *, suffix: str = "safetensors") -> None:
    """The layout of llm-blender/PairRM: a ranker's config.json that names its backbone; the tokenizer comes from there.

    Same weights as ``hf_folder``. ``suffix`` bin adds what older releases wrote: position ids, and a wrapper's prefix.
    """
    config = DebertaV2Config.from_pretrained(str(hf_folder))
    plain: PreTrainedTokenizerFast = train_tokenizer(TEXTS, 300)
    backbone_config = DebertaV2Config(
        **{
            name: getattr(config, name)
            for name in (*SHAPE, "relative_attention", "position_biased_input", "pos_att_type")
        },
        vocab_size=len(plain) + 64,  # as deberta-v3, whose embedding has spare rows
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    )
    DebertaV2Model(backbone_config).save_pretrained(str(backbone))
    plain.save_pretrained(str(backbone))
    folder.mkdir()
    described = {
        "ranker_type": "pairranker",
        "model_type": "deberta",
        "model_name": str(backbone),
        "cache_dir": None,
        "load_checkpoint": None,
        "source_maxlength": 1224,
        "candidate_maxlength": 412,
        "n_tasks": 1,
        "drop_out": 0.05,
    }
    (folder / "config.json").write_text(json.dumps(described))
    state = load_file(hf_folder / "model.safetensors")
    if suffix == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        state["pretrained_model.embeddings.position_ids"] = torch.arange(512)[None]
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")


def comparison(text: str, *answers: str) -> Comparison:
    return Comparison(Prompt.of(text[:20] or "empty", text), answers)
