"""PairRM's model: building, loading, saving, and its forward pass.

Three layouts load into llm-blender's ``DebertaV2PairRM``: a folder that ``save_pairrm`` wrote, ``llm-blender/PairRM-hf`` (the same
layout), and ``llm-blender/PairRM``, whose ``config.json`` describes a ranker and names its backbone. The two layouts' weights have
the same names (llm-blender's conversion copies them one to one), but for prefixes and buffers that older releases wrote.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, DebertaV2Config

from learner.errors import InputError
from workers.scorers.pairrm_shim import DebertaV2PairRM
from workers.scorers.pairrm_tokens import PairTokenizer, PairTokens
from workers.scorers.weights import model_folder, weight_files

_EMBEDDINGS = "pretrained_model.embeddings.word_embeddings.weight"


def new_pairrm(pair_tokenizer: PairTokenizer, *, dropout: float, **architecture: Any) -> DebertaV2PairRM:
    """A PairRM with random weights (from torch's global generator).

    Args:
        pair_tokenizer: its vocabulary and prefix ids go into the configuration.
        dropout: of the backbone and the head.
        architecture: ``DebertaV2Config``'s sizes. Positions are relative, so that any length can be read.
    """
    config = DebertaV2Config(
        vocab_size=len(pair_tokenizer.tokenizer),
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=pair_tokenizer.pad_id,
        # DeBERTa's own 0.02 suits a width of 1024. In a narrow model it leaves attention uniform and learning starts late.
        **{"initializer_range": architecture["hidden_size"] ** -0.5, **architecture},
    )
    _complete(config, pair_tokenizer, tasks=1, dropout=dropout)
    return DebertaV2PairRM(config)


def load_pairrm(
    model: str, *, max_source_tokens: int, max_total_tokens: int, field: str = "scorer.model.model"
) -> tuple[DebertaV2PairRM, PairTokenizer, list[Path]]:
    """Load a PairRM in float32 on the CPU.

    Args:
        model: a local folder or a hub name, of any of the three layouts.
        max_source_tokens: see ``PairTokenizer``.
        max_total_tokens: see ``PairTokenizer``.
        field: the setting that named the model, for errors.

    Returns:
        The model in evaluation mode, its tokenizer, and the files that its weights came from.

    Raises:
        InputError: the folder is none of the layouts, or its weights do not fit.
    """
    folder = model_folder(model, field=field)
    described = _read_config(folder, field)
    files = weight_files(folder, field=field)
    state = _read_weights(files)
    if _EMBEDDINGS not in state:
        raise InputError(f"{field}: {model!r} is not a PairRM: its weights lack {_EMBEDDINGS}")
    if "ranker_type" in described:
        if described["ranker_type"] != "pairranker" or not str(described.get("model_type", "")).startswith("deberta"):
            raise InputError(
                f"{field}: {model!r} is a ranker of type {described['ranker_type']!r} on {described.get('model_type')!r}; only "
                "'pairranker' on 'deberta' can be loaded"
            )
        backbone = model_folder(str(described["model_name"]), field=f"{field}: backbone of {model!r}")
        has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "spm.model"))
        tokenizer = AutoTokenizer.from_pretrained(str(folder if has_tokenizer else backbone))
        config = DebertaV2Config.from_pretrained(str(backbone))
        tasks, dropout = int(described.get("n_tasks", 1)), float(described.get("drop_out", 0.05))
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        config = DebertaV2Config.from_pretrained(str(folder))
        tasks, dropout = int(described.get("n_tasks", 1)), float(described.get("drop_out", 0.0))
    config.vocab_size = state[_EMBEDDINGS].shape[0]
    if config.position_biased_input and max_total_tokens > config.max_position_embeddings:
        raise InputError(
            f"{field}: {model!r} reads at most {config.max_position_embeddings} tokens; set max_total_tokens to that or less, and "
            "max_source_tokens below it"
        )
    pair_tokenizer = PairTokenizer(tokenizer, max_source_tokens, max_total_tokens)
    _complete(config, pair_tokenizer, tasks=tasks, dropout=dropout)
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{field}: the tokenizer of {model!r} has {len(tokenizer)} tokens but its weights know {config.vocab_size}; they do not "
            "belong together"
        )
    pairrm = DebertaV2PairRM(config)
    missing, unexpected = pairrm.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise InputError(
            f"{field}: the weights of {model!r} do not fit PairRM: missing {_few(missing)}, unexpected {_few(unexpected)}"
        )
    return pairrm.float().eval(), pair_tokenizer, files


def save_pairrm(model: DebertaV2PairRM, pair_tokenizer: PairTokenizer, folder: Path) -> None:
    """Write model and tokenizer in the layout of ``llm-blender/PairRM-hf``."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(str(folder))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    pair_tokenizer.tokenizer.save_pretrained(str(folder))


def pair_logits(model: DebertaV2PairRM, pairs: Sequence[PairTokens], pad_id: int) -> Tensor:
    """The logits that the first answer of each pair beats the second, ``[len(pairs)]`` float32.

    The same sum as ``DebertaV2PairRM.forward``: the head reads the last states at ``<|source|>`` and at one candidate's prefix, and
    the logit is the mean over tasks of the two candidates' difference. Positions are known from assembling the pair, which spares
    the search for them, and on a GPU a synchronisation for each row.
    """
    device = next(model.parameters()).device
    longest = max(len(pair.ids) for pair in pairs)
    ids = torch.full((len(pairs), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(pairs), longest), dtype=torch.long)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.ids)] = torch.tensor(pair.ids)
        mask[row, : len(pair.ids)] = 1
    positions = torch.tensor([[pair.source, pair.candidate1, pair.candidate2] for pair in pairs], device=device)
    states = model.pretrained_model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
    source, first, second = states[torch.arange(len(pairs), device=device)[:, None], positions].unbind(dim=1)
    scores1 = model.head_layer(torch.cat([source, first], dim=-1))
    scores2 = model.head_layer(torch.cat([source, second], dim=-1))
    logits: Tensor = (scores1.float() - scores2.float()).mean(dim=-1)
    return logits


def _complete(config: DebertaV2Config, pair_tokenizer: PairTokenizer, *, tasks: int, dropout: float) -> None:
    """Fill in what ``DebertaV2PairRM`` reads from its configuration; files of older transformers lack some of it."""
    values = {
        "n_tasks": tasks,
        "drop_out": dropout,
        "sep_token_id": pair_tokenizer.tokenizer.sep_token_id,
        "source_prefix_id": pair_tokenizer.source_id,
        "cand_prefix_id": pair_tokenizer.candidate_id,
        "cand1_prefix_id": pair_tokenizer.candidate1_id,
        "cand2_prefix_id": pair_tokenizer.candidate2_id,
    }
    for name, value in values.items():
        setattr(config, name, value)


def _read_config(folder: Path, field: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{field}: {folder} has no config.json; a PairRM folder needs one") from None
    except ValueError as error:
        raise InputError(f"{field}: {path} is not JSON ({error})") from error
    if "ranker_type" not in described and described.get("model_type") != "deberta-v2":
        raise InputError(
            f"{field}: {folder} holds a model of type {described.get('model_type')!r}, not a PairRM ('deberta-v2'); for a reward "
            "model use kind: reward-model"
        )
    return dict(described)


def _read_weights(files: list[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            state.update(load_file(str(file)))
        else:
            # weights_only: a pickle that holds anything but tensors is refused (rule 16).
            state.update(torch.load(file, map_location="cpu", weights_only=True))
    return {
        name.removeprefix("module."): tensor
        for name, tensor in state.items()
        if not name.endswith("embeddings.position_ids")
    }


def _few(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
